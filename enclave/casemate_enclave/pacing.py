"""When joined runs of one model begin, and how many rows each has (SPEC 8.8.2.1)."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from casemate import limits

if TYPE_CHECKING:
    from casemate_enclave.batching import Job

_KEPT: Final = 8


class Pacing:
    """Of requests that wait without threads. Not thread-safe: it is the lock of the places'.

    Runs that do not take long come one after the other, so that more is joined in each; those that
    do use all places, and leave some of what waits to the others.
    """

    def __init__(self, most: int, places: int) -> None:
        """``most``: rows of a run."""
        self.waiting = 0
        self._most = most
        self._places = places
        self._begun: dict[int, float] = {}
        self._took = deque([0.0], maxlen=_KEPT)

    def may_begin(self, job: Job) -> bool:
        """Whether a job, whose turn it is, may take a free place."""
        if job.has_thread or not self._begun or self._take_long:
            return True
        late = time.monotonic() > min(self._begun.values()) + limits.LATE_S
        return late or self.waiting >= self._most

    @property
    def rows(self) -> int:
        """How many may run together now, with one request that waits no more."""
        if not self._take_long:
            return self._most
        return min(self._most, math.ceil((1 + self.waiting) / self._places))

    @property
    def patience_s(self) -> float:
        """How long the next run may wait for others: no longer than the last took, if it was short.

        So waiting costs nobody more than a run that began at once would have.
        """
        last = self._took[-1]
        return 0.0 if self._take_long or last > limits.LATE_S else last

    @property
    def _take_long(self) -> bool:
        """Judges by the quickest of the last: any may have waited for a processor."""
        return min(self._took) > limits.LATE_S

    def begin(self, run: int, now: float) -> None:
        """Note that ``run`` begins."""
        self._begun[run] = now

    def end(self, run: int) -> None:
        """Note that it is back."""
        self._took.append(time.monotonic() - self._begun.pop(run))
