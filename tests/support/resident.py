"""How far the resident memory of a process rises while something happens."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from tests.support.attacker import resident_kib

if TYPE_CHECKING:
    from types import TracebackType

_EVERY_S = 0.002


class Peak:
    """Watches one process within a block."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._before = self._highest = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        self._highest = max(self._highest, resident_kib(self._pid))

    @property
    def growth(self) -> int:
        """Bytes by which the highest value is above the first."""
        return (self._highest - self._before) * 1024

    def __enter__(self) -> Self:
        self._before = self._highest = resident_kib(self._pid)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._look()
        self._over.set()
        self._thread.join()
