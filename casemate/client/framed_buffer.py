"""Frames of one framed connection as their bytes arrive (SPEC 9.2, 9.6.3), without input."""

from __future__ import annotations

import struct
from typing import Final

from casemate import limits
from casemate.client.call_book import BrokenError
from casemate.frames import COUNTED, ERROR, HEAD_BYTES, Arriving

_HEAD: Final = struct.Struct(">IB")
_LENGTH: Final = 4  # bytes of the head that the length does not count


def checked(length: int, kind: int, expected: int, most: int = limits.FRAME_MAX) -> bool:
    """Tell whether a frame is a refusal, not an answer; raises BrokenError if it is neither."""
    if kind not in {expected, ERROR}:
        raise BrokenError(f"a frame of type {kind}")
    if not COUNTED <= length <= most:
        raise BrokenError(f"a frame of {length} bytes")
    return kind == ERROR


class FrameBuffer(Arriving):
    """Takes bytes as they arrive, gives whole frames of one type, or refusals."""

    def __init__(self, expected: int, most: int = limits.FRAME_MAX) -> None:
        """``expected``: type of the frames; ``most``: what their length may say."""
        super().__init__(HEAD_BYTES)
        self._expected = expected
        self._most = most

    def take(self) -> tuple[bool, bytes] | None:
        """Return whether the next frame is a refusal, and its payload; None until all is there.

        Raises BrokenError, as soon as the head is there.
        """
        data, at = self._data, self._at
        if len(data) - at < HEAD_BYTES:
            return None
        length, kind = _HEAD.unpack_from(data, at)
        refused = checked(length, kind, self._expected, self._most)
        end = at + _LENGTH + length
        if end > len(data):
            return None
        self._at = end
        if isinstance(data, bytes):
            return refused, data[at + HEAD_BYTES : end]
        payload = bytes(memoryview(data)[at + HEAD_BYTES : end])
        if end == len(data):
            self._data, self._at = b"", 0  # an idle connection keeps no large frame
        return refused, payload
