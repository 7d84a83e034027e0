"""Units: length-prefixed parts, then zero bytes up to a bucket (SPEC 5.5)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.envelope.chunks import BrokenSealError
from casemate.envelope.padding import holds_answer, padded_answer, padded_length
from casemate.errors import Code, EnvelopeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casemate.wire import Buffer, Pieces

    Part = Buffer | Pieces

_LENGTH: Final = struct.Struct(">I")
_PREFIX: Final = _LENGTH.size
_REQUEST_PARTS: Final = 2  # at least
_BLOCK: Final = 64 * limits.KIB
_ZEROS: Final = bytes(_BLOCK)  # compared block by block: 60 KiB of padding in 3 us


class PaddedUnit:
    """A unit that is not written out: parts with their lengths before them, then zeros."""

    __slots__ = ("_pieces", "length")

    def __init__(self, pieces: list[Buffer], length: int) -> None:
        """``pieces`` of framed parts; ``length`` in bytes, padding included.

        Raises EnvelopeError: TOO_LARGE when it passes the limit of one message.
        """
        self._pieces = pieces
        if length > limits.REQUEST_MAX:
            raise EnvelopeError(
                Code.TOO_LARGE, f"message of {length} padded bytes, limit {limits.REQUEST_MAX}"
            )
        self.length = length

    def whole(self) -> bytes:
        """Return the unit; for short ones, of which each part is copied twice."""
        return b"".join(self._pieces).ljust(self.length, b"\0")

    def chunks(self) -> Iterator[Buffer]:
        """Iterate over the unit's chunks; what lies within one part is not copied."""
        if self.length <= limits.CHUNK:
            return iter((self.whole(),))
        return (p[0] if len(p) == 1 else b"".join(p) for p in self.scattered())

    def scattered(self) -> Iterator[list[memoryview]]:
        """Yield the unit chunk by chunk, each in pieces; nothing is copied."""
        left = self._pieces_and_zeros()
        piece = memoryview(b"")
        for start in range(0, self.length, limits.CHUNK):
            chunk: list[memoryview] = []
            size = min(limits.CHUNK, self.length - start)
            while size:
                piece = piece or next(left)
                chunk.append(piece[:size])
                size -= len(chunk[-1])
                piece = piece[len(chunk[-1]) :]
            yield chunk

    def _pieces_and_zeros(self) -> Iterator[memoryview]:
        padding = self.length
        for piece in self._pieces:
            if len(piece):
                padding -= len(piece)
                yield memoryview(piece).toreadonly()
        while padding:
            zeros = memoryview(_ZEROS)[:padding]
            padding -= len(zeros)
            yield zeros


def request_unit(parts: Sequence[Part]) -> PaddedUnit:
    """Return the unit of ``parts``.

    Raises EnvelopeError (TOO_LARGE), and ValueError if a part is empty.
    """
    pieces: list[Buffer] = []
    length = 0
    for part in parts:
        length += _frame(part, pieces)
    return PaddedUnit(pieces, padded_length(length))


def response_unit(messages: Iterable[Part], trailer: Buffer, floor: int) -> PaddedUnit:
    """Return the unit of an answer, in a bucket of ``floor`` bytes or 0.

    Raises EnvelopeError (TOO_LARGE).
    """
    if len(trailer) > limits.TRAILER_MAX:
        raise ValueError("the trailer is larger than its room")
    pieces: list[Buffer] = []
    length = 0
    for message in messages:
        length += _frame(message, pieces)
    pieces += (_LENGTH.pack(len(trailer)), trailer)
    return PaddedUnit(pieces, padded_answer(length, floor))


def pack_unit(parts: Sequence[Part]) -> bytes:
    """Return ``request_unit`` written out."""
    return request_unit(parts).whole()


def pack_response(message: Part | None, trailer: Buffer, floor: int) -> bytes:
    """Return the ``response_unit`` of one message, or none, written out."""
    return response_unit(() if message is None else (message,), trailer, floor).whole()


def _frame(part: Part, pieces: list[Buffer]) -> int:
    """Add a part, with its length before it, to ``pieces``; return the bytes of both."""
    if isinstance(part, (list, tuple)):
        size = sum(map(len, part))
        pieces += (_LENGTH.pack(size), *part)
    else:
        size = len(part)
        pieces += (_LENGTH.pack(size), part)
    if not size:
        raise ValueError("a part of a unit is empty")
    return _PREFIX + size


def require_zeros(view: memoryview) -> None:
    """Refuse padding of anything but zeros; raises BrokenSealError."""
    if len(view) <= _BLOCK:
        if not _ZEROS.startswith(view):
            raise BrokenSealError
        return
    for at in range(0, len(view), _BLOCK):
        if not _ZEROS.startswith(view[at : at + _BLOCK]):
            raise BrokenSealError


def split_parts(unit: memoryview, most: int) -> tuple[list[memoryview], int]:
    """Return the parts and the bytes that they take; ``most`` bounds the work.

    What follows them is zeros. Raises BrokenSealError.
    """
    parts: list[memoryview] = []
    at, start, size = 0, _PREFIX, len(unit)
    while start <= size:
        (length,) = _LENGTH.unpack_from(unit, at)
        if not length:
            break
        at = start + length
        if at > size or len(parts) == most:
            raise BrokenSealError
        parts.append(unit[start:at])
        start = at + _PREFIX
    require_zeros(unit[at:])
    return parts, at


def split_request(unit: memoryview) -> list[memoryview]:
    """Return the parts of a request's unit, as views: its preamble, then one message or several.

    Raises BrokenSealError.
    """
    parts, length = split_parts(unit, 1 + limits.QUESTIONS_MAX)
    if len(parts) < _REQUEST_PARTS or len(unit) != padded_length(length):
        raise BrokenSealError
    return parts


def split_single(unit: memoryview) -> memoryview:
    """Return the only part of a unit of sealed data, as a view; raises BrokenSealError."""
    parts, length = split_parts(unit, 1)
    if not parts or padded_length(length) != len(unit):
        raise BrokenSealError
    return parts[0]


def split_response(unit: memoryview, most: int = 1) -> tuple[list[memoryview], memoryview]:
    """Return a response's messages, ``most`` or fewer, and its trailer; raises BrokenSealError.

    The reader does not know the floor, so any bucket that is large enough passes (SPEC 5.5).
    """
    parts, length = split_parts(unit, most + 1)
    if not parts:
        raise BrokenSealError
    trailer = parts.pop()
    size = len(trailer)
    if size > limits.TRAILER_MAX or not holds_answer(len(unit), length - _PREFIX - size):
        raise BrokenSealError
    return parts, trailer
