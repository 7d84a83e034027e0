"""``SealedChunks`` on the wire: a header in the first message, then chunks (SPEC 5.9, 9.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate import limits, protowire
from casemate.errors import Code, EnvelopeError

if TYPE_CHECKING:
    from casemate.wire import Buffer

_HEADER: Final = 1
_CHUNK: Final = 2


def encode_header(header: bytes) -> tuple[bytes, bytes]:
    """Return the header's field as buffers; the chunks' fields follow it."""
    return protowire.bytes_head(_HEADER, len(header)), header


def encode_chunk(chunk: Buffer) -> tuple[bytes, Buffer]:
    """Return one chunk's field as buffers; messages are joined by joining their bytes."""
    return protowire.bytes_head(_CHUNK, len(chunk)), chunk


def parse_chunks(payload: Buffer, *, first: bool) -> tuple[bytes, list[memoryview]]:
    """Return (header, chunks) of a message, chunks as views of ``payload``.

    The header is empty in every message but the ``first``. Raises EnvelopeError (MALFORMED) for
    anything but field 1, once and only in the first message, then field 2, each with a chunk.
    """
    message = memoryview(payload).toreadonly()
    header, at, size = memoryview(b""), 0, len(message)
    chunks = []
    try:
        if first:
            header, at = protowire.bytes_field(message, 0, _HEADER)
        while at < size:
            chunk, at = protowire.bytes_field(message, at, _CHUNK)
            chunks.append(chunk)
    except protowire.WireError:
        raise _malformed() from None
    if bool(header) != first or len(header) > limits.HEADER_MAX or not (header or chunks):
        raise _malformed()
    if not all(chunks):
        raise _malformed()
    return bytes(header), chunks


def _malformed() -> EnvelopeError:
    return EnvelopeError(Code.MALFORMED, "not a message of a stream")
