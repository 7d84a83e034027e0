"""How long a worker's runs take: whether others may wait for one."""

from __future__ import annotations

from collections import deque
from typing import Final

from casemate import limits

_KEPT: Final = 8
_WARY: Final = 32  # runs by themselves, after one that had to be


class Pace:
    """Judges by the quickest of the last runs: any of them may have waited for a processor."""

    def __init__(self) -> None:
        self._last = deque([float("inf")] * _KEPT, _KEPT)
        self._wary = 0

    def note(self, spent_s: float) -> None:
        """Take the time of one run into account."""
        self._last.append(spent_s)
        if self._wary:
            self._wary -= 1

    def beware(self) -> None:
        """Let a while pass before runs are begun together again."""
        self._wary = _WARY

    @property
    def quick(self) -> bool:
        """Whether others may wait for a run."""
        return not self._wary and min(self._last) < limits.QUICK_S
