"""What the questions of all streams may hold at a time: the measured bound (SPEC 3.2, 5.9)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import Code, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable


class StreamMemory:
    """A number of bytes that streams share; thread-safe.

    A unit takes all it needs at once, before its memory, and what waits holds nothing of its own:
    so no two streams can wait for each other. Units of one chunk have some room beside it, so that
    they need not wait for a long one, which may take its time to arrive.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0
        self._freed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes taken at present."""
        return self._used

    def take(self, size: int, give_up: Callable[[], None]) -> None:
        """Take ``size`` bytes, waiting for others to free theirs.

        ``give_up`` is called while it waits, and raises to end that. Raises RequestError
        (TOO_LARGE) for what could never be taken.
        """
        if size > self._capacity:
            detail = f"a unit of {size} bytes, limit {self._capacity}"
            raise RequestError(Code.TOO_LARGE, detail)
        room = self._capacity + (limits.STREAM_SHORT if size <= limits.CHUNK else 0)
        with self._freed:
            while self._used + size > room:
                give_up()
                self._freed.wait(limits.STREAM_LOOK_S)
            self._used += size

    def free(self, size: int) -> None:
        """Give ``size`` bytes back."""
        with self._freed:
            self._used -= size
            self._freed.notify_all()
