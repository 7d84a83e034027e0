"""Growing pauses between attempts."""

from __future__ import annotations


class Backoff:
    """Pauses that double from ``first_s`` to ``maximum_s`` seconds until something succeeds."""

    def __init__(self, first_s: float, maximum_s: float) -> None:
        self._first_s = first_s
        self._maximum_s = maximum_s
        self._next_s = first_s

    def next(self) -> float:
        """Return the pause before the next attempt, in seconds."""
        pause = self._next_s
        self._next_s = min(self._maximum_s, pause * 2)
        return pause

    def reset(self) -> None:
        """Start again from the first pause: something succeeded, or the circumstances changed."""
        self._next_s = self._first_s
