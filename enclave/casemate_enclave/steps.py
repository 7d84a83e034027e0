"""How long the steps of a request take, as histograms that tell no single request's (SPEC 9.3).

Promise: what is published moves only when ``limits.STEP_GROUP`` answers have been sealed since it
last did, and every answer counts once in ``run`` and ``queue``, whether a model ran or not. The two
move together, whatever is under way at the time.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from enum import StrEnum, unique
from functools import partial
from typing import TYPE_CHECKING, Final

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType


@unique
class Step(StrEnum):
    """Every step that is timed."""

    UNWRAP = "unwrap"
    OPEN = "open"
    QUEUE = "queue"
    RUN = "run"
    SEAL = "seal"


_OF_AN_ANSWER: Final = (Step.OPEN, Step.QUEUE, Step.RUN, Step.SEAL)
_place: Final = partial(bisect_left, limits.STEP_BOUNDS_US)  # of microseconds in a histogram


class Timed:
    """Adds the duration of its block to one step, also when the block raises."""

    __slots__ = ("_begun", "_count", "_step", "_steps")

    def __init__(self, steps: Steps, step: Step, count: int) -> None:
        self._steps = steps
        self._step = step
        self._count = count
        self._begun = 0

    def __enter__(self) -> None:
        self._begun = time.monotonic_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        count = self._count
        each = (time.monotonic_ns() - self._begun) // (1000 * count)
        self._steps.add(self._step, each, count)


class _Histogram:
    __slots__ = ("counts", "sum_us")

    def __init__(self) -> None:
        self.counts = [0] * (len(limits.STEP_BOUNDS_US) + 1)
        self.sum_us = 0

    def add(self, microseconds: int, count: int = 1) -> None:
        """Add a duration ``count`` times."""
        self.counts[_place(microseconds)] += count
        self.sum_us += microseconds * count

    def add_all(self, durations: Collection[int]) -> None:
        """Add each of ``durations``, in microseconds."""
        for place in map(_place, durations):
            self.counts[place] += 1
        self.sum_us += sum(durations)

    def answer(self, total: int) -> dict[str, list[int] | int]:
        """As in SPEC 9.3, filled up with zero durations to ``total``."""
        missing = max(0, total - sum(self.counts))
        return {"counts": [self.counts[0] + missing, *self.counts[1:]], "sum_us": self.sum_us}


class Steps:
    """One histogram for each step; thread-safe."""

    def __init__(self, group: int = limits.STEP_GROUP) -> None:
        self._group = group
        self._lock = threading.Lock()
        self._waited = threading.local()
        self._steps = {step: _Histogram() for step in Step}
        self._unpublished = 0
        self._answers: list[tuple[int, int, int, int]] = []  # counted when they are published
        self._published = self._answer()

    def timed(self, step: Step, count: int = 1) -> Timed:
        """Return a context manager that times its block, which does the step ``count`` times."""
        return Timed(self, step, count)

    def add(self, step: Step, microseconds: int, count: int = 1) -> None:
        """Add a duration ``count`` times.

        What a thread has waited in ``QUEUE``, however often, counts when its ``RUN`` has ended.
        """
        waited: dict[str, int] = self._waited.__dict__
        if step is Step.QUEUE:
            waited[step] = waited.get(step, 0) + microseconds
            return
        with self._lock:
            self._steps[step].add(microseconds, count)
            if step is Step.RUN:
                self._steps[Step.QUEUE].add(waited.pop(Step.QUEUE, 0) // count, count)
            if step is not Step.SEAL:
                return
            self._sealed(count)

    def add_answer(self, opened_us: int, ran_us: int, sealed_us: int) -> None:
        """Add the steps of a whole answer, with what this thread has waited in ``QUEUE``."""
        waited: int = self._waited.__dict__.pop(Step.QUEUE, 0)
        with self._lock:
            self._answers.append((opened_us, waited, ran_us, sealed_us))
            self._sealed(1)

    def _sealed(self, count: int) -> None:
        self._unpublished += count
        if self._unpublished >= self._group:
            self._unpublished = 0
            self._published = self._answer()

    def histograms(self) -> dict[str, dict[str, list[int] | int]]:
        """Return what was published last, by step, zeros included."""
        with self._lock:
            return self._published

    def _answer(self) -> dict[str, dict[str, list[int] | int]]:
        for step, durations in zip(_OF_AN_ANSWER, zip(*self._answers, strict=True), strict=False):
            self._steps[step].add_all(durations)
        self._answers.clear()
        sealed = sum(self._steps[Step.SEAL].counts)
        # A refusal inside the seal may have reached neither: that must not show.
        filled = {Step.QUEUE, Step.RUN}
        return {
            step.value: histogram.answer(sealed if step in filled else 0)
            for step, histogram in self._steps.items()
        }
