"""Chunks under AES-256-GCM: order, number and end are authenticated (SPEC 5.5, 8.1)."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

from casemate import limits
from casemate.envelope.guard import Guarded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casemate.wire import Buffer

TAG_BYTES: Final = 16
SEALED_CHUNK: Final = limits.CHUNK + TAG_BYTES
_NONCE_BYTES: Final = 12
_FLAG_BITS: Final = 8


class Flag(IntEnum):
    """The last byte of a chunk's nonce (SPEC 5.5)."""

    MORE = 0
    UNIT_ENDS = 1
    LAST = 2


class BrokenSealError(ValueError):
    """Sealed bytes do not open; every door turns it into its own single error."""


_BYTES: Final = tuple(bytes((flag,)) for flag in Flag)


def _nonce(counter: int, flag: Flag) -> bytes:
    return (counter << _FLAG_BITS | flag).to_bytes(_NONCE_BYTES, "big")


_ALONE: Final = _nonce(0, Flag.LAST)  # of a content's only chunk


def _of_one_unit(*, last: bool) -> Flag:
    return Flag.LAST if last else Flag.MORE


def _count(length: int, size: int) -> int:
    return -(-length // size)


def sealed_length(length: int) -> int:
    """Return the bytes that ``length`` >= 1 bytes of content take when sealed."""
    return length + TAG_BYTES * _count(length, limits.CHUNK)


class ChunkCipher(Guarded):
    """Seals, or opens, the chunks of one content in order, under a key for that content only."""

    __slots__ = ("_aad", "_aead", "_counter")

    def __init__(self, key: bytes, aad: bytes) -> None:
        self._aead = AESGCM(key)
        self._aad = aad
        self._counter = 0

    def seal_into(self, chunk: Buffer, out: Buffer, *, last: bool) -> None:
        """Seal the next chunk of a content of one unit into ``out``, ``TAG_BYTES`` longer."""
        self.seal_flagged(chunk, out, _of_one_unit(last=last))

    def open_into(self, sealed: Buffer, out: Buffer, *, last: bool) -> None:
        """Open the next chunk into ``out``, ``TAG_BYTES`` shorter; raises BrokenSealError."""
        self.open_flagged(sealed, out, _of_one_unit(last=last))

    def open_in_place(self, sealed: memoryview, number: int, *, last: bool) -> memoryview:
        """Open chunk ``number`` of a content of one unit where it lies; raises BrokenSealError.

        On any thread and in any order. Whoever counts the chunks answers for that order.
        """
        plain = sealed[:-TAG_BYTES]
        try:
            nonce = _nonce(number, _of_one_unit(last=last))
            self._aead.decrypt_into(nonce, sealed, self._aad, plain)
        except InvalidTag:
            raise BrokenSealError from None
        return plain

    def seal_alone(self, chunk: Buffer) -> memoryview:
        """Seal a content of one chunk."""
        return memoryview(self._aead.encrypt(_ALONE, chunk, self._aad))

    def seal_all(self, chunks: Iterable[Buffer], length: int) -> memoryview:
        """Seal a content of one unit of ``length`` >= 1 bytes, into one buffer."""
        if length <= limits.CHUNK:
            (chunk,) = chunks
            return self.seal_alone(chunk)
        sealed = memoryview(bytearray(sealed_length(length)))
        at = 0
        for chunk in chunks:
            end = at + len(chunk) + TAG_BYTES
            self.seal_into(chunk, sealed[at:end], last=end == len(sealed))
            at = end
        return sealed.toreadonly()

    def seal_flagged(self, chunk: Buffer, out: Buffer, flag: Flag) -> None:
        """Seal the next chunk of a stream: its flag says what ends with it (SPEC 5.9)."""
        self._aead.encrypt_into(_nonce(self._counter, flag), chunk, self._aad, out)
        self._counter += 1

    def seal_short(self, chunk: bytes, flag: Flag) -> bytes:
        """Seal the next chunk as ``seal_flagged``; return it as it travels, its flag before it."""
        sealed = self._aead.encrypt(_nonce(self._counter, flag), chunk, self._aad)
        self._counter += 1
        return _BYTES[flag] + sealed

    def open_short(self, sealed: Buffer, flag: Flag) -> bytes:
        """Open the next chunk as ``open_flagged``, into memory of its own."""
        try:
            plain = self._aead.decrypt(_nonce(self._counter, flag), sealed, self._aad)
        except InvalidTag:
            raise BrokenSealError from None
        self._counter += 1
        return plain

    def open_flagged(self, sealed: Buffer, out: Buffer, flag: Flag) -> None:
        """Open the next chunk as ``seal_flagged`` made it; raises BrokenSealError."""
        try:
            self._aead.decrypt_into(_nonce(self._counter, flag), sealed, self._aad, out)
        except InvalidTag:
            raise BrokenSealError from None
        self._counter += 1


def seal_content(key: bytes, aad: bytes, content: Buffer) -> memoryview:
    """Seal ``content`` (at least one byte) as consecutive chunks; nothing is copied but sealed."""
    plain = memoryview(content)
    starts = range(0, len(plain), limits.CHUNK)
    pieces = (plain[start : start + limits.CHUNK] for start in starts)
    return seal_pieces(key, aad, pieces, len(plain))


def seal_pieces(key: bytes, aad: bytes, pieces: Iterable[Buffer], length: int) -> memoryview:
    """Seal ``pieces``, the chunks of a content of ``length`` >= 1 bytes, into one buffer."""
    return ChunkCipher(key, aad).seal_all(pieces, length)


def seal_alone(key: bytes, aad: bytes, chunk: bytes) -> bytes:
    """Seal ``chunk``, a whole content of at most ``limits.CHUNK`` bytes."""
    return AESGCM(key).encrypt(_ALONE, chunk, aad)


def seal_scattered(
    key: bytes, aad: bytes, chunks: Iterable[Sequence[Buffer]], out: memoryview
) -> None:
    """Seal ``chunks``, each of which lies in pieces, into ``out``, which they fill when sealed.

    As ``seal_pieces`` does it, but nothing is copied to lie together. For long contents: a cipher
    that takes pieces costs some microseconds a chunk.
    """
    at = 0
    for counter, pieces in enumerate(chunks):
        end = at + sum(map(len, pieces)) + TAG_BYTES
        nonce = _nonce(counter, _of_one_unit(last=end == len(out)))
        _seal_scattered(key, nonce, aad, pieces, out[at:end])
        at = end


def _seal_scattered(
    key: bytes, nonce: bytes, aad: bytes, pieces: Sequence[Buffer], out: memoryview
) -> None:
    sealing = Cipher(AES256(key), GCM(nonce)).encryptor()
    sealing.authenticate_additional_data(aad)
    at = 0
    for piece in pieces:
        at += sealing.update_into(piece, out[at:])
    sealing.finalize()
    out[at:] = sealing.tag


def open_content(
    key: bytes, aad: bytes, ciphertext: Buffer, place: memoryview | None = None
) -> memoryview:
    """Open what ``seal_content`` made; raises BrokenSealError.

    Memory is taken once, less than ``ciphertext``, or not at all: a content of one chunk is opened
    in ``place``, where that may be ``ciphertext`` itself, which is lost then even if it does not
    open. Nothing is returned before the last chunk has passed.
    """
    sealed = memoryview(ciphertext)
    if TAG_BYTES < len(sealed) <= SEALED_CHUNK:
        return _open_alone(key, aad, sealed, place)
    chunks = _count(len(sealed), SEALED_CHUNK)
    if len(sealed) - (chunks - 1) * SEALED_CHUNK <= TAG_BYTES or not chunks:
        raise BrokenSealError
    plain = memoryview(bytearray(len(sealed) - TAG_BYTES * chunks))
    cipher = ChunkCipher(key, aad)
    for index in range(chunks):
        piece = sealed[index * SEALED_CHUNK : (index + 1) * SEALED_CHUNK]
        at = index * limits.CHUNK
        out = plain[at : at + len(piece) - TAG_BYTES]
        cipher.open_into(piece, out, last=index == chunks - 1)
    return plain.toreadonly()


def _open_alone(key: bytes, aad: bytes, sealed: memoryview, place: memoryview | None) -> memoryview:
    try:
        if place is None:
            return memoryview(AESGCM(key).decrypt(_ALONE, sealed, aad))
        plain = place[: len(sealed) - TAG_BYTES]
        AESGCM(key).decrypt_into(_ALONE, sealed, aad, plain)
    except InvalidTag:
        raise BrokenSealError from None
    return plain.toreadonly()
