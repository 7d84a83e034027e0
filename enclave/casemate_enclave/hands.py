"""Threads for work that nobody's own thread waits for."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Callable


class Hands:
    """Does each task at once, as many as are handed in; thread-safe.

    Threads that nobody needed for a while end, but for one. Waiting, they refer to no task.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tasks: deque[Callable[[], None]] = deque()
        self._idle = 0

    def take(self, task: Callable[[], None]) -> None:
        """Have a thread do ``task``, which never raises.

        Where no thread is to be had the first that has done its own task does it.
        """
        with self._changed:
            self._tasks.append(task)
            if self._idle >= len(self._tasks):
                self._changed.notify()
                return
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._work, name="hands", daemon=True).start()

    def _work(self) -> None:
        while (task := self._next_task()) is not None:
            task()
            del task

    def _next_task(self) -> Callable[[], None] | None:
        with self._changed:
            self._idle += 1
            try:
                while not self._tasks:
                    if not self._changed.wait(limits.THREAD_IDLE_S) and self._idle > 1:
                        return None
                return self._tasks.popleft()
            finally:
                self._idle -= 1
