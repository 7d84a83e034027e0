"""Ends model runs at their deadline: one thread for all of them (THREATS C5)."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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

    As many entries as runs under way, so never more than there are connections.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs: dict[object, tuple[float, Terminable]] = {}
        self._next = float("inf")
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def until(self, deadline: float, run: Terminable) -> Iterator[None]:
        """Watch ``run`` during the block; ``deadline`` in seconds of ``time.monotonic``."""
        ticket = object()
        with self._changed:
            self._runs[ticket] = (deadline, run)
            if deadline < self._next:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._runs.pop(ticket, None)

    def _watch(self) -> None:
        with self._changed:
            while True:
                self._end_overdue(time.monotonic())
                self._next = min(
                    (deadline for deadline, _ in self._runs.values()), default=float("inf")
                )
                pause = self._next - time.monotonic()
                self._changed.wait(None if pause == float("inf") else max(pause, 0.0))

    def _end_overdue(self, now: float) -> None:
        overdue = [ticket for ticket, (deadline, _) in self._runs.items() if deadline <= now]
        for ticket in overdue:
            self._runs.pop(ticket)[1].terminate = True
