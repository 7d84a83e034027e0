"""A bounded number of places, handed from who leaves to who has waited longest.

Whoever comes while others wait waits behind them. Without that order a flood of new calls passes
the old ones, and their latency has no bound but their deadline.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from casemate.errors import Code, FrameError

if TYPE_CHECKING:
    from casemate_host.call import Call


class _Turn:
    __slots__ = ("changed", "granted")

    def __init__(self, lock: threading.Lock) -> None:
        self.changed = threading.Condition(lock)
        self.granted = False


class Places:
    """``count`` places; thread-safe."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._queue: deque[_Turn] = deque()
        self._busy = 0
        self._closed = False

    @property
    def busy(self) -> int:
        """Places that are taken."""
        return self._busy

    @property
    def waiting(self) -> int:
        """Calls that wait for one."""
        return len(self._queue)

    def claim(self, call: Call) -> None:
        """Take a place, to be given back with ``release``.

        Raises FrameError: DEADLINE_EXCEEDED if none comes in time, UNAVAILABLE after ``close``.
        """
        with self._lock:
            self._check(call)
            if self._busy < self._count:  # then nobody waits
                self._busy += 1
                return
            turn = _Turn(self._lock)
            self._queue.append(turn)
            try:
                self._await(turn, call)
            except FrameError:
                if turn.granted:
                    self._pass_on()
                else:
                    self._queue.remove(turn)
                raise

    def release(self) -> None:
        """Give a place to the next in the queue, or back."""
        with self._lock:
            self._pass_on()

    def wake(self) -> None:
        """Let those who wait notice that their call was cancelled."""
        with self._lock:
            for turn in self._queue:
                turn.changed.notify()

    def close(self) -> None:
        """Refuse whoever waits and whoever comes."""
        with self._lock:
            self._closed = True
        self.wake()

    def _await(self, turn: _Turn, call: Call) -> None:
        turn.changed.wait_for(
            lambda: turn.granted or self._closed or call.cancelled, timeout=call.remaining_s()
        )
        self._check(call)
        if not turn.granted:
            raise FrameError(Code.DEADLINE_EXCEEDED, "no connection became free in time")

    def _pass_on(self) -> None:
        if not self._queue:
            self._busy -= 1
            return
        turn = self._queue.popleft()
        turn.granted = True
        turn.changed.notify()

    def _check(self, call: Call) -> None:
        if self._closed:
            raise FrameError(Code.UNAVAILABLE, "the host is stopping")
        call.remaining_s()
