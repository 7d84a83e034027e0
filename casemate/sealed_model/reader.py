"""Opening a sealed model as it arrives, in bounded memory (SPEC 8.1, 8.3)."""

from __future__ import annotations

import hmac
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from casemate import limits, wire
from casemate.envelope.chunks import TAG_BYTES, ChunkCipher
from casemate.envelope.guard import Guarded
from casemate.errors import Code, ModelError
from casemate.sealed_model.contents import Contents, open_failed
from casemate.sealed_model.header import MAGIC, SIGNATURE_BYTES, ModelHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from casemate.sealed_model.memory_file import ModelContents

_LENGTH: Final = struct.Struct(">I")
_HEADER_AT: Final = len(MAGIC) + _LENGTH.size


class _State(Enum):
    HEAD = auto()  # header and signature are arriving
    PARSED = auto()  # nothing of the header is trusted
    VERIFIED = auto()  # the publisher said it
    OPEN = auto()  # chunks are opened as they arrive
    ENDED = auto()  # released or refused: nothing more is taken


class ModelReader(Guarded):
    """Takes a sealed model in pieces and releases it whole, or not at all.

    In this order: ``feed`` until ``header`` is there, ``verify_publisher``, perhaps ``expect``,
    ``unlock``, ``feed`` or ``feed_all`` for the rest, ``finish``. Any other order raises
    RuntimeError. Bad input raises ModelError with the code of its step, after which the reader is
    of no use. Memory: the contents, and a chunk for each thread. A context manager, for which what
    has not been released is given up.
    """

    def __init__(self, max_bytes: int = limits.MODEL_BYTES_MAX) -> None:
        """Bound the sum of the contents to ``max_bytes``."""
        self._max_bytes = max_bytes
        self._state = _State.HEAD
        self._buffer = bytearray()
        self._signed = b""
        self._signature = b""
        self._header: ModelHeader | None = None
        self._contents: Contents | None = None
        self._cipher: ChunkCipher | None = None
        self._taking = threading.Lock()
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def header(self) -> ModelHeader | None:
        """The header once it has arrived; UNTRUSTED until ``verify_publisher`` returned."""
        return self._header

    def _require(self, *states: _State) -> None:
        if self._state not in states:
            raise RuntimeError(f"not possible when the reader is {self._state.name}")

    def feed(self, data: wire.Buffer) -> None:
        """Take the next bytes of the file, at most 1 MiB at a time before ``unlock``.

        A ``data`` that can be written to is the reader's from then on: it is opened in place.
        """
        self._require(_State.HEAD, _State.PARSED, _State.VERIFIED, _State.OPEN)
        view = memoryview(data)
        try:
            if self._state is _State.OPEN:
                for open_part in self._take(view):
                    open_part()
                return
            # Chunks of a model that nobody vouched for are not collected.
            if len(self._buffer) + len(view) > limits.MODEL_HEADER_MAX + 2 * limits.MIB:
                raise RuntimeError("more than one chunk before unlock")
            self._buffer += view
            if self._state is _State.HEAD:
                self._take_head()
        except ModelError:
            self._end()
            raise

    def _take_head(self) -> None:
        buffer = self._buffer
        if buffer[: len(MAGIC)] != MAGIC[: len(buffer)]:
            raise ModelError(Code.MODEL_MALFORMED, f"not a sealed model ({MAGIC.decode()})")
        if len(buffer) < _HEADER_AT:
            return
        (length,) = _LENGTH.unpack_from(buffer, len(MAGIC))
        if not 0 < length <= limits.MODEL_HEADER_MAX:
            raise ModelError(Code.MODEL_MALFORMED, "model header: length out of bounds")
        signature_at = _HEADER_AT + length + _LENGTH.size
        end = signature_at + SIGNATURE_BYTES
        if len(buffer) < end:
            return
        if _LENGTH.unpack_from(buffer, _HEADER_AT + length)[0] != SIGNATURE_BYTES:
            raise ModelError(Code.MODEL_MALFORMED, "signature has a wrong length")
        self._signed = bytes(buffer[: _HEADER_AT + length])
        self._signature = bytes(buffer[signature_at:end])
        self._header = ModelHeader.parse(self._signed[_HEADER_AT:])
        del buffer[:end]
        self._state = _State.PARSED

    def verify_publisher(
        self, publishers: Collection[bytes], minimum_versions: Mapping[str, int]
    ) -> ModelHeader:
        """Return the header, signed by one of ``publishers`` (Ed25519 keys of 32 bytes).

        ``minimum_versions`` is keyed ``<publisher hex>/<name>`` (SPEC 3.2). Raises ModelError, in
        this order: MODEL_PUBLISHER_UNKNOWN, MODEL_SIGNATURE_INVALID, MODEL_VERSION_REVOKED,
        TOO_LARGE.
        """
        self._require(_State.PARSED)
        header = self._header
        if header is None:
            raise RuntimeError("no header")
        try:
            self._verify(header, publishers, minimum_versions)
        except ModelError:
            self._end()
            raise
        self._state = _State.VERIFIED
        return header

    def _verify(
        self,
        header: ModelHeader,
        publishers: Collection[bytes],
        minimum_versions: Mapping[str, int],
    ) -> None:
        if header.publisher not in publishers:
            raise ModelError(Code.MODEL_PUBLISHER_UNKNOWN, "the publisher is not in configuration")
        try:
            Ed25519PublicKey.from_public_bytes(header.publisher).verify(
                self._signature, wire.label("model") + wire.digest(self._signed)
            )
        except (InvalidSignature, ValueError):
            raise ModelError(
                Code.MODEL_SIGNATURE_INVALID, "the signature is not the publisher's"
            ) from None
        minimum = minimum_versions.get(f"{header.publisher.hex()}/{header.name}", 1)
        if header.version < minimum:
            raise ModelError(
                Code.MODEL_VERSION_REVOKED, f"version {header.version}, minimum {minimum}"
            )
        if header.total_bytes > self._max_bytes:
            raise ModelError(
                Code.TOO_LARGE, f"model of {header.total_bytes} bytes, limit {self._max_bytes}"
            )

    def expect(self) -> None:
        """Begin to take memory for the contents: while the key is asked for there is time for it.

        Raises OSError if there is none.
        """
        self._require(_State.VERIFIED)
        if self._header is not None and self._contents is None:
            self._contents = Contents(self._header.entries)

    def unlock(self, data_key: bytes) -> None:
        """Start opening with the unwrapped data key; raises ModelError (MODEL_OPEN_FAILED)."""
        self._require(_State.VERIFIED)
        header = self._header
        if header is None:
            raise RuntimeError("no header")
        try:
            prk = _committed(header, data_key)
            file_hash = wire.digest(self._signed)
            self._cipher = ChunkCipher(wire.expand(prk, "model", file_hash), file_hash)
            self.expect()
            self._state = _State.OPEN
            early, self._buffer = self._buffer, bytearray()
            for open_part in self._take(memoryview(early)):
                open_part()
        except ModelError:
            self._end()
            raise

    def feed_all(self, pieces: Iterator[wire.Buffer]) -> None:
        """Feed all ``pieces``, once unlocked, with a thread for each processor.

        Each takes a piece, one after the other, and then opens, keeps and hashes it while others
        take the next: a processor that writes where another one has read takes several times as
        long. Raises what ``pieces`` raises, and ModelError.
        """
        self._require(_State.OPEN)
        threads = min(os.cpu_count() or 1, limits.LOAD_THREADS_MAX)
        with ThreadPoolExecutor(threads, thread_name_prefix="open") as pool:
            ends = [pool.submit(self._feed_some, pieces) for _ in range(threads)]
        try:
            for end in ends:
                end.result()
        except ModelError:
            self._end()
            raise

    def _feed_some(self, pieces: Iterator[wire.Buffer]) -> None:
        try:
            while True:
                with self._taking:
                    if self._failed or (piece := next(pieces, None)) is None:
                        return
                    parts = self._take(memoryview(piece))
                for open_part in parts:
                    open_part()
        except BaseException:
            self._failed = True
            raise

    def _take(self, data: memoryview) -> list[Callable[[], None]]:
        if self._cipher is None or self._contents is None:
            raise RuntimeError("locked")
        parts = []
        while data:
            wanted = self._contents.wanted + TAG_BYTES
            if wanted == TAG_BYTES:
                raise open_failed()  # the file ends with the last chunk
            if not self._buffer and len(data) >= wanted and not data.readonly:
                parts.append(self._contents.add(data[:wanted], self._cipher))
                data = data[wanted:]
                continue
            missing = wanted - len(self._buffer)
            self._buffer += data[:missing]
            data = data[missing:]
            if len(self._buffer) == wanted:
                sealed, self._buffer = memoryview(self._buffer), bytearray()
                parts.append(self._contents.add(sealed, self._cipher))
        return parts

    def finish(self) -> ModelContents:
        """Return the contents, the ONNX model first.

        Only now is anything released: the last chunk and every digest have been verified. Raises
        ModelError: MODEL_MALFORMED for a file that ends within its header, else MODEL_OPEN_FAILED.
        """
        self._require(_State.HEAD, _State.OPEN)
        contents = self._contents
        head = self._state is _State.HEAD
        if contents is not None and not contents.wanted:
            self._contents = None  # what is whole is released and not given up
        self._end()
        if head:
            raise ModelError(Code.MODEL_MALFORMED, "the file ends within its header")
        if contents is None or contents.wanted:
            raise open_failed()
        try:
            return contents.release()
        except BaseException:
            contents.drop()
            raise

    def _end(self) -> None:
        self._state = _State.ENDED
        if self._contents is not None:
            self._contents.drop()
        self._contents = self._cipher = None
        self._buffer = bytearray()


def _committed(header: ModelHeader, data_key: bytes) -> bytes:
    if len(data_key) != wire.KEY_BYTES:
        raise open_failed()
    prk = wire.extract(data_key)
    if not hmac.compare_digest(wire.expand(prk, "commit"), header.key_commitment):
        raise open_failed()
    return prk
