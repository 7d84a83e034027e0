"""Numbered frames: many exchanges under way on one connection (SPEC 9.2.1)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from casemate import limits
from casemate.errors import Code, FrameError
from casemate.frames import ANSWER, Arriving, FrameType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.frames import Frame
    from casemate.wire import Buffer

_HEAD: Final = struct.Struct(">IBIIB")
_INNER: Final = struct.Struct(">IB")
_HEAD_BYTES: Final = _HEAD.size
_LENGTH: Final = 4  # bytes of the head that the length does not count
_COUNTED: Final = _HEAD.size - _LENGTH
QUESTION_MAX: Final = _COUNTED + limits.NUMBERED_MAX  # what a question's length may say


class Numbered(NamedTuple):
    """One exchange's frame; ``type`` is the inner one, ``budget`` in milliseconds."""

    number: int
    type: int
    payload: bytes
    budget: int


def question(number: int, kind: FrameType, payload: Buffer, budget: int) -> tuple[Buffer, ...]:
    """Return the frame that asks ``payload`` of at most ``limits.NUMBERED_MAX`` bytes."""
    length = _COUNTED + len(payload)
    return _HEAD.pack(length, FrameType.NUMBERED, budget, number, kind), payload


def cancel(number: int) -> tuple[Buffer, ...]:
    """Return the frame that gives up question ``number``."""
    return (_HEAD.pack(_COUNTED, FrameType.NUMBERED, 0, number, FrameType.CANCEL),)


def answer(number: int, kind: int, pieces: Sequence[Buffer]) -> tuple[Buffer, ...]:
    """Return the frame that answers ``number``; raises FrameError (TOO_LARGE)."""
    length = _COUNTED + sum(map(len, pieces))
    if length > limits.FRAME_MAX:
        raise FrameError(Code.TOO_LARGE, f"frame of {length} bytes, limit {limits.FRAME_MAX}")
    return _HEAD.pack(length, FrameType.NUMBERED | ANSWER, 0, number, kind), *pieces


def first(frame: Frame) -> Numbered:
    """Return the frame that a connection began with; raises FrameError."""
    if len(frame.payload) < _INNER.size:
        raise FrameError(Code.MALFORMED, "not a numbered frame")
    if len(frame.payload) > _INNER.size + limits.NUMBERED_MAX:
        raise FrameError(Code.TOO_LARGE, "too large for a numbered frame")
    number, kind = _INNER.unpack_from(frame.payload)
    return Numbered(number, kind, bytes(frame.payload[_INNER.size :]), frame.budget)


class FrameBuffer(Arriving):
    """Takes bytes as they arrive, gives whole frames of one outer type."""

    def __init__(self, outer: int, most: int) -> None:
        """``most``: the largest length that a frame may state."""
        super().__init__(_HEAD.size)
        self._outer = outer
        self._most = most

    @property
    def rest(self) -> bytes:
        """What has arrived and was not taken."""
        return bytes(self._data[self._at :])

    def take(self) -> Numbered | None:
        """Return the next whole frame; None until it has arrived.

        Raises FrameError: MALFORMED for anything else, TOO_LARGE above the bound; what follows it
        cannot be read.
        """
        data, at = self._data, self._at
        left = len(data) - at
        if left < _HEAD_BYTES:
            if left:
                self._check_short(data, at)
            return None
        length, outer, budget, number, kind = _HEAD.unpack_from(data, at)
        if outer != self._outer or length < _COUNTED:
            raise FrameError(Code.MALFORMED, "not a numbered frame")
        if length > self._most:
            raise FrameError(Code.TOO_LARGE, f"frame of {length} bytes, limit {self._most}")
        end = at + _LENGTH + length
        if end > len(data):
            return None
        self._at = end
        if isinstance(data, bytes):
            payload = data[at + _HEAD_BYTES : end]
        else:
            payload = bytes(memoryview(data)[at + _HEAD.size : end])
            if end == len(data):
                self._data, self._at = b"", 0  # an idle connection keeps no large frame
        return Numbered(number, kind, payload, budget or limits.FRAME_BUDGET_DEFAULT)

    def _check_short(self, data: bytes | bytearray, at: int) -> None:
        """A frame of another type may be shorter than this head: notice it all the same."""
        if len(data) - at > _LENGTH and data[at + _LENGTH] != self._outer:
            raise FrameError(Code.MALFORMED, "not a numbered frame")
