"""Ends model runs at their deadline: one thread for all of them (THREATS C5)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_NEVER: Final = float("inf")


class Terminable(Protocol):
    """onnxruntime's RunOptions: ``terminate`` set to True ends the run between two operators."""

    terminate: bool


class OnTermination:
    """Calls ``end`` when it is told to terminate, once; a ``Terminable``."""

    __slots__ = ("_end", "_ended")

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end
        self._ended = False

    @property
    def terminate(self) -> bool:
        """Whether it was told to."""
        return self._ended

    @terminate.setter
    def terminate(self, value: bool) -> None:
        if value and not self._ended:
            self._ended = True
            self._end()


class Watchdog:
    """Sets ``terminate`` on whatever runs past its deadline; thread-safe.

    As many entries as runs under way, so never more than there are connections. Whoever removes an
    entry decides about it: the run that has ended, or the thread that ends it. Neither needs a lock
    for that, since one operation on a dictionary is atomic.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs: dict[object, tuple[float, Terminable]] = {}
        self._next = _NEVER
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def until(self, deadline: float, run: Terminable) -> Watched:
        """Watch ``run`` during a block; ``deadline`` in seconds of ``time.monotonic``."""
        return Watched(self, deadline, run)

    def begin(self, deadline: float, run: Terminable) -> object:
        """Watch ``run`` until ``end`` is called with what this returns."""
        ticket = object()
        self._runs[ticket] = (deadline, run)
        if deadline < self._next:
            with self._changed:
                self._changed.notify()
        return ticket

    def end(self, ticket: object) -> None:
        """Leave the run alone from now on."""
        self._runs.pop(ticket, None)

    def _watch(self) -> None:
        with self._changed:
            while True:
                self._next = _NEVER  # who begins and is not seen here wakes this thread
                self._end_overdue(time.monotonic())
                runs = self._runs.copy().values()
                self._next = min((deadline for deadline, _ in runs), default=_NEVER)
                pause = self._next - time.monotonic()
                self._changed.wait(None if pause == _NEVER else max(pause, 0.0))

    def _end_overdue(self, now: float) -> None:
        for ticket, (deadline, _) in self._runs.copy().items():
            if deadline <= now and (entry := self._runs.pop(ticket, None)):
                entry[1].terminate = True


class Watched:
    """What ``Watchdog.until`` returns."""

    __slots__ = ("_deadline", "_run", "_ticket", "_watchdog")

    def __init__(self, watchdog: Watchdog, deadline: float, run: Terminable) -> None:
        self._watchdog = watchdog
        self._deadline = deadline
        self._run = run
        self._ticket: object = None

    def __enter__(self) -> None:
        self._ticket = self._watchdog.begin(self._deadline, self._run)

    def __exit__(self, *_: object) -> None:
        self._watchdog.end(self._ticket)
