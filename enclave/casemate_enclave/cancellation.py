"""Ends work that nobody waits for any more (THREATS C5, H13)."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_enclave.watchdog import Terminable


class Cancellation:
    """Shared by all work for one asker; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[object, Terminable] = {}
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End what runs and what will; later calls do nothing."""
        with self._lock:
            self._cancelled.set()
            for run in self._runs.values():
                run.terminate = True
            self._runs.clear()

    def wait(self, timeout_s: float) -> bool:
        """Wait until cancelled, or for ``timeout_s`` seconds; True if cancelled."""
        return self._cancelled.wait(timeout_s)

    @contextmanager
    def ending(self, run: Terminable) -> Iterator[None]:
        """End ``run`` if this is cancelled during the block."""
        ticket = object()
        with self._lock:
            if self._cancelled.is_set():
                run.terminate = True
            self._runs[ticket] = run
        try:
            yield
        finally:
            with self._lock:
                self._runs.pop(ticket, None)
