"""How long a worker's runs take: whether others may wait for one."""

from __future__ import annotations

from typing import Final

from casemate import limits

_KEPT: Final = 8
_WARY: Final = 32  # runs by themselves, after one that had to be


class Pace:
    """Judges by the quickest of the last runs: any of them may have waited for a processor."""

    def __init__(self) -> None:
        self._last = [float("inf")] * _KEPT
        self._at = 0
        self._wary = 0

    def note(self, spent_s: float) -> None:
        """Take the time of one run into account."""
        self._at = (self._at + 1) % _KEPT
        self._last[self._at] = spent_s
        self._wary -= self._wary > 0

    def beware(self) -> None:
        """Let a while pass before runs are begun together again."""
        self._wary = _WARY

    @property
    def quick(self) -> bool:
        """Whether others may wait for a run."""
        return not self._wary and min(self._last) < limits.QUICK_S
