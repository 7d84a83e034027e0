"""Durations in fixed buckets, as the enclave counts its own (SPEC 9.3.1)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass

from casemate import limits


@dataclass(frozen=True, slots=True)
class Buckets:
    """A reading: ``counts`` as in SPEC 9.3.1, not cumulated; ``sum_us`` in microseconds."""

    counts: tuple[int, ...]
    sum_us: int

    def cumulated(self) -> list[tuple[str, float]]:
        """(upper bound in seconds, durations of at most that), as Prometheus wants them."""
        bounds = [str(bound / 1_000_000) for bound in limits.STEP_BOUNDS_US] + ["+Inf"]
        total, result = 0, []
        for bound, count in zip(bounds, self.counts, strict=True):
            total += count
            result.append((bound, float(total)))
        return result


class Histogram:
    """Counts durations; thread-safe."""

    __slots__ = ("_counts", "_lock", "_parts", "_sum_us")

    def __init__(self, *parts: Histogram) -> None:
        """``parts``: what is counted there counts here as well."""
        self._parts = parts
        self._lock = threading.Lock()
        self._counts = [0] * (len(limits.STEP_BOUNDS_US) + 1)
        self._sum_us = 0

    def add(self, *seconds: float) -> None:
        """Add durations in seconds."""
        with self._lock:
            for each in seconds:
                microseconds = int(each * 1_000_000)
                self._counts[bisect_left(limits.STEP_BOUNDS_US, microseconds)] += 1
                self._sum_us += microseconds

    def read(self) -> Buckets:
        """Return the present state."""
        with self._lock:
            counts, sum_us = list(self._counts), self._sum_us
        for part in self._parts:
            other = part.read()
            counts = [own + theirs for own, theirs in zip(counts, other.counts, strict=True)]
            sum_us += other.sum_us
        return Buckets(tuple(counts), sum_us)
