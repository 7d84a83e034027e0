"""``SealedRequest`` and ``SealedResponse`` on the wire: exactly two fields, in order (SPEC 9.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate import limits, protowire
from casemate.errors import Code, EnvelopeError

if TYPE_CHECKING:
    from casemate.wire import Buffer

_HEADER: Final = 1
_CIPHERTEXT: Final = 2


def encode_sealed(header: bytes, ciphertext: Buffer) -> tuple[Buffer, ...]:
    """Return the protobuf message as buffers to send one after the other; nothing is copied."""
    return (
        protowire.bytes_head(_HEADER, len(header)),
        header,
        protowire.bytes_head(_CIPHERTEXT, len(ciphertext)),
        ciphertext,
    )


def sealed_front(header: bytes, length: int) -> bytes:
    """Return what precedes a ciphertext of ``length`` bytes in the protobuf message."""
    head = protowire.bytes_head(_CIPHERTEXT, length)
    return b"".join((protowire.bytes_head(_HEADER, len(header)), header, head))


def parse_sealed(payload: Buffer) -> tuple[bytes, memoryview]:
    """Return (header, ciphertext) of a message; the ciphertext is a view of ``payload``.

    Raises EnvelopeError (MALFORMED) for anything but fields 1 and 2, once each, in this order, with
    shortest varints: host and enclave can never read two different messages in the same bytes.
    """
    view = memoryview(payload).toreadonly()
    try:
        header, end = protowire.bytes_field(view, 0, _HEADER)
        ciphertext, end = protowire.bytes_field(view, end, _CIPHERTEXT)
    except protowire.WireError:
        raise EnvelopeError(Code.MALFORMED, "not a sealed message") from None
    if end != len(view):
        raise EnvelopeError(Code.MALFORMED, "not a sealed message")
    if not 0 < len(header) <= limits.HEADER_MAX or not ciphertext:
        raise EnvelopeError(Code.MALFORMED, "sealed message with an empty or overlong field")
    return bytes(header), ciphertext
