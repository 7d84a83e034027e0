"""Ends work that nobody waits for any more (THREATS C5, H13)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from casemate.wire import Buffer
    from casemate_enclave.watchdog import Terminable


class Cancellation:
    """Shared by all work for one asker; thread-safe. Cheap: every question has one."""

    __slots__ = ("_cancelled", "_event", "_lock", "_runs", "owner")

    def __init__(self) -> None:
        self.owner: bytes | None = None  # a caller whom a model lists, else the session
        self._lock = threading.Lock()
        self._runs: list[Terminable] = []
        self._cancelled = False
        self._event: threading.Event | None = None

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self._cancelled

    def cancel(self) -> None:
        """End what runs and what will; later calls do nothing."""
        with self._lock:
            self._cancelled = True
            for run in self._runs:
                run.terminate = True
            self._runs.clear()
            if self._event is not None:
                self._event.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until cancelled, or for ``timeout_s`` seconds; True if cancelled."""
        with self._lock:
            if self._cancelled:
                return True
            event = self._event = self._event or threading.Event()
        return event.wait(timeout_s)

    def await_room(self, deadline: float) -> bool:  # noqa: ARG002 - for questions that are asked in frames
        """Wait until there is room for an answer; False if there is none before ``deadline``."""
        return True

    def hold(self, message: Iterable[Buffer]) -> None:
        """Count an answer as unsent, likewise."""

    def ending(self, run: Terminable) -> Ending:
        """Return a context manager that ends ``run`` if this is cancelled during the block."""
        return Ending(self, run)

    def begin(self, run: Terminable) -> None:
        """Have ``run`` ended from now on."""
        with self._lock:
            if self._cancelled:
                run.terminate = True
            else:
                self._runs.append(run)

    def end(self, run: Terminable) -> None:
        """Leave ``run`` alone from now on."""
        with self._lock:
            # By identity: what runs need not be comparable.
            self._runs[:] = [other for other in self._runs if other is not run]


class Ending:
    """What ``Cancellation.ending`` returns."""

    __slots__ = ("_cancellation", "_run")

    def __init__(self, cancellation: Cancellation, run: Terminable) -> None:
        self._cancellation = cancellation
        self._run = run

    def __enter__(self) -> None:
        self._cancellation.begin(self._run)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cancellation.end(self._run)
