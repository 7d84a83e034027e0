"""Units: length-prefixed parts, then zero bytes up to a bucket (SPEC 5.5)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.envelope.chunks import BrokenSealError
from casemate.envelope.padding import padded_answer, padded_length, padme
from casemate.errors import Code, EnvelopeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.wire import Buffer

_LENGTH: Final = struct.Struct(">I")
_ZEROS: Final = bytes(64 * limits.KIB)  # compared block by block: 60 KiB of padding in 3 us


def pack_unit(parts: Sequence[Buffer]) -> bytearray:
    """Return the padded unit of non-empty ``parts``; each part is copied once.

    Raises EnvelopeError: TOO_LARGE when the padded unit passes the limit of one message.
    """
    return _pack(parts, padded_length(_framed(parts)))


def pack_response(message: Buffer | None, trailer: Buffer, floor: int) -> bytearray:
    """Return the padded unit of an answer, in a model's answer bucket ``floor`` or 0.

    Raises EnvelopeError (TOO_LARGE) as ``pack_unit``.
    """
    messages = () if message is None else (message,)
    if len(trailer) > limits.TRAILER_MAX:
        raise ValueError("the trailer is larger than its room")
    return _pack((*messages, trailer), padded_answer(_framed(messages), floor))


def _framed(parts: Sequence[Buffer]) -> int:
    return sum(_LENGTH.size + len(part) for part in parts)


def _pack(parts: Sequence[Buffer], length: int) -> bytearray:
    if not all(parts):
        raise ValueError("a part of a unit is empty")
    if length > limits.REQUEST_MAX:
        raise EnvelopeError(
            Code.TOO_LARGE, f"message of {length} padded bytes, limit {limits.REQUEST_MAX}"
        )
    unit = bytearray(length)
    view = memoryview(unit)
    at = 0
    for part in parts:
        _LENGTH.pack_into(view, at, len(part))
        at += _LENGTH.size
        view[at : at + len(part)] = part
        at += len(part)
    return unit


def require_zeros(view: memoryview) -> None:
    """Refuse padding of anything but zeros; raises BrokenSealError."""
    for at in range(0, len(view), len(_ZEROS)):
        block = bytes(view[at : at + len(_ZEROS)])
        if block != _ZEROS[: len(block)]:
            raise BrokenSealError


def split_parts(unit: memoryview, most: int) -> tuple[list[memoryview], int]:
    """Return the parts and the bytes that they take; ``most`` bounds the work.

    What follows them is zeros. Raises BrokenSealError.
    """
    parts: list[memoryview] = []
    at = 0
    while len(unit) - at >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(unit, at)
        if length == 0:
            break
        start = at + _LENGTH.size
        if length > len(unit) - start or len(parts) == most:
            raise BrokenSealError
        at = start + length
        parts.append(unit[start:at])
    require_zeros(unit[at:])
    return parts, at


def split_request(unit: memoryview) -> tuple[memoryview, memoryview]:
    """Return the two parts of a request's unit, as views; raises BrokenSealError."""
    parts, length = split_parts(unit, 2)
    if len(parts) != 2 or len(unit) != padded_length(length):  # noqa: PLR2004 - SPEC 5.6
        raise BrokenSealError
    return parts[0], parts[1]


def split_single(unit: memoryview) -> memoryview:
    """Return the only part of a unit of sealed data, as a view; raises BrokenSealError."""
    parts, length = split_parts(unit, 1)
    if not parts or padded_length(length) != len(unit):
        raise BrokenSealError
    return parts[0]


def split_response(unit: memoryview) -> tuple[memoryview | None, memoryview]:
    """Return a response's message, if there is one, and its trailer; raises BrokenSealError.

    The reader does not know the floor, so any bucket that is large enough passes (SPEC 5.5).
    """
    parts, length = split_parts(unit, 2)
    if not parts or len(parts[-1]) > limits.TRAILER_MAX or len(unit) != padme(len(unit)):
        raise BrokenSealError
    if len(unit) < padded_answer(length - _LENGTH.size - len(parts[-1])):
        raise BrokenSealError
    return (parts[0] if len(parts) > 1 else None), parts[-1]
