"""Units of a stream: written from pieces, read chunk by chunk (SPEC 5.9).

Promise: beside the largest part of a unit, which the reader keeps in one buffer and the writer
takes from where it lies, and what its caller has it keep of the other parts, neither holds more
than a few chunks, however long the unit is.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from casemate import limits
from casemate.envelope.chunks import TAG_BYTES, BrokenSealError, ChunkCipher, Flag
from casemate.envelope.guard import Guarded
from casemate.envelope.units import require_zeros, split_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from casemate.wire import Buffer

FLAG_BYTES: Final = 1
PREFIX_BYTES: Final = 4  # the length before a part
_LENGTH: Final = struct.Struct(">I")
_ZEROS: Final = bytes(limits.CHUNK)
_SHORT: Final = 64 * limits.KIB  # a copy of so much costs less than to do without it
_FLAGS: Final = tuple(Flag)
_MORE: Final = Flag.MORE  # a member costs as much to find as some of the steps below
_ALIGNMENT: Final = 16  # what the allocator gives, and more than any datatype needs


# Writing


class UnitWriter(Guarded):
    """Seals the units of one content in order, under a key for that content only."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes, aad: bytes) -> None:
        self._cipher = ChunkCipher(key, aad)

    def seal(
        self, pieces: Sequence[Buffer], length: int, flag: Flag = Flag.UNIT_ENDS
    ) -> Iterable[bytes | bytearray]:
        """Return the chunks of a unit: ``pieces``, then zeros up to ``length`` bytes.

        Whoever begins a unit sends all of its chunks, in order.
        """
        if length <= _SHORT:
            return (self._cipher.seal_short(b"".join(pieces).ljust(length, b"\0"), flag),)
        return self._chunks(pieces, length, flag)

    def _chunks(self, pieces: Sequence[Buffer], length: int, flag: Flag) -> Iterator[bytearray]:
        left = length
        for plain in _cut(_filled(pieces, length)):
            left -= len(plain)
            yield self._chunk(plain, Flag.MORE if left else flag)

    def _chunk(self, plain: Buffer, flag: Flag) -> bytearray:
        chunk = bytearray(FLAG_BYTES + len(plain) + TAG_BYTES)
        chunk[0] = flag
        self._cipher.seal_flagged(plain, memoryview(chunk)[FLAG_BYTES:], flag)
        return chunk


def framed(part: Sequence[Buffer], size: int) -> tuple[Buffer, ...]:
    """Return ``LP(part)``, ``PREFIX_BYTES`` longer than the ``size`` bytes of the part.

    It may lie in several pieces, none of which is copied.
    """
    return _LENGTH.pack(size), *part


def _filled(pieces: Sequence[Buffer], length: int) -> Iterator[Buffer]:
    yield from pieces
    missing = length - sum(map(len, pieces))
    while missing:
        yield memoryview(_ZEROS)[:missing]
        missing -= min(missing, len(_ZEROS))


def _cut(pieces: Iterable[Buffer]) -> Iterator[Buffer]:
    """Yield the plaintext chunk by chunk; a piece that fills a chunk alone is not copied."""
    joined = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        while view:
            if not joined and len(view) >= limits.CHUNK:
                yield view[: limits.CHUNK]
                view = view[limits.CHUNK :]
                continue
            taken = view[: limits.CHUNK - len(joined)]
            joined += taken
            view = view[len(taken) :]
            if len(joined) == limits.CHUNK:
                yield joined
                joined = bytearray()
    if joined:
        yield joined


# Reading


class Unit(NamedTuple):
    """A whole unit, authenticated.

    ``filled`` bytes are its parts with their prefixes, of ``length`` with its padding.
    """

    flag: Flag
    parts: list[memoryview]
    filled: int
    length: int


class UnitReader(Guarded):
    """Opens the chunks of one content in order; a failure is the end of it."""

    def __init__(
        self,
        key: bytes,
        aad: bytes,
        *,
        most_parts: int,
        rest_max: Callable[[], int],
        take: Callable[[int], None],
        lead: Callable[[memoryview], int],
        memory: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
    ) -> None:
        """Read units of at most ``most_parts`` parts.

        Of a unit of several chunks all parts but the first take at most so many bytes with their
        prefixes as ``rest_max`` returns when it begins. ``take`` hears how much memory a unit needs
        before it is taken, and may raise; ``lead`` says, from the beginning of a long first part,
        where in it something should lie at an aligned address; ``memory`` gives as many bytes for
        it.
        """
        self._cipher: ChunkCipher | None = ChunkCipher(key, aad)
        self._most_parts = most_parts
        self._rest_max = rest_max
        self._take = take
        self._lead = lead
        self._memory = memory
        self._long: _LongUnit | None = None

    @property
    def between_units(self) -> bool:
        """Whether every unit that was begun has ended."""
        return self._long is None

    def read(self, chunk: memoryview) -> Unit | None:
        """Open the next chunk; returns the unit that it ends. Raises BrokenSealError."""
        cipher, self._cipher = self._cipher, None
        if cipher is None:
            raise BrokenSealError
        flag, sealed = _split_flag(chunk)
        if self._long is None and flag is not _MORE:
            unit = self._whole(cipher, sealed, flag)
            self._cipher = cipher
            return unit
        if self._long is None:
            self._long = self._begin(cipher, sealed)
        else:
            self._long.read(cipher, sealed, flag)
        self._cipher = cipher
        if flag is Flag.MORE:
            return None
        ended, self._long = self._long, None
        return ended.end(flag, self._most_parts)

    def _whole(self, cipher: ChunkCipher, sealed: memoryview, flag: Flag) -> Unit:
        size = len(sealed) - TAG_BYTES
        self._take(size)
        if size <= _SHORT:
            plain = memoryview(cipher.open_short(sealed, flag))
        else:
            room = memoryview(bytearray(size))
            cipher.open_flagged(sealed, room, flag)
            plain = room.toreadonly()
        parts, filled = split_parts(plain, self._most_parts)
        return Unit(flag, parts, filled, size)

    def _begin(self, cipher: ChunkCipher, sealed: memoryview) -> _LongUnit:
        plain = memoryview(bytearray(len(sealed) - TAG_BYTES))
        cipher.open_flagged(sealed, plain, Flag.MORE)
        (length,) = _LENGTH.unpack_from(plain)
        if not length:
            raise BrokenSealError
        self._take(length)
        lead = -self._lead(plain[_LENGTH.size :][:length]) % _ALIGNMENT
        body = self._memory(lead + length)[lead:]
        unit = _LongUnit(body, self._rest_max())
        unit.absorb(plain[_LENGTH.size :])
        return unit


class _LongUnit:
    """A unit of several chunks under way."""

    __slots__ = ("_body", "_filled", "_length", "_rest", "_rest_max", "_scratch")

    def __init__(self, body: memoryview, rest_max: int) -> None:
        self._body = body
        self._rest = bytearray()
        self._length = _LENGTH.size
        self._filled = 0
        self._rest_max = rest_max
        self._scratch = memoryview(bytearray())

    def read(self, cipher: ChunkCipher, sealed: memoryview, flag: Flag) -> None:
        size = len(sealed) - TAG_BYTES
        place = self._body[self._filled : self._filled + size]
        if len(place) == size:  # the usual case: opened where it belongs
            cipher.open_flagged(sealed, place, flag)
            self._filled += size
            self._length += size
            return
        if not self._scratch:
            self._scratch = memoryview(bytearray(limits.CHUNK))
        plain = self._scratch[:size]
        cipher.open_flagged(sealed, plain, flag)
        self.absorb(plain)

    def absorb(self, plain: memoryview) -> None:
        """Take the next opened bytes: the first part, then the rest, then zeros."""
        self._length += len(plain)
        part = plain[: len(self._body) - self._filled]
        self._body[self._filled : self._filled + len(part)] = part
        self._filled += len(part)
        rest = plain[len(part) :]
        kept = rest[: self._rest_max - len(self._rest)]
        self._rest += kept
        require_zeros(rest[len(kept) :])

    def end(self, flag: Flag, most_parts: int) -> Unit:
        """Return the unit, now that its last chunk has passed; raises BrokenSealError."""
        if self._filled != len(self._body):
            raise BrokenSealError
        rest, filled = split_parts(memoryview(self._rest).toreadonly(), most_parts - 1)
        filled += _LENGTH.size + len(self._body)
        return Unit(flag, [self._body.toreadonly(), *rest], filled, self._length)


def _split_flag(chunk: memoryview) -> tuple[Flag, memoryview]:
    """Return (flag, sealed bytes); a chunk within a unit is full."""
    sealed = chunk[FLAG_BYTES:]
    try:
        flag = _FLAGS[chunk[0]]
    except IndexError:
        raise BrokenSealError from None
    size = len(sealed) - TAG_BYTES
    if not 0 < size <= limits.CHUNK or (flag is _MORE and size != limits.CHUNK):
        raise BrokenSealError
    return flag, sealed
