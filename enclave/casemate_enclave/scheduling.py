"""Which request of a model runs when: bounds, a queue, and runs together (SPEC 8.8).

No thread of its own: who finishes hands its place to whoever's turn it is, and that request's own
thread runs, together with those that it can take along. So nobody waits while a place is free.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import Code, RequestError
from casemate_enclave.batching import Group, Job, Joinable, count_rows, gather, join, split
from casemate_enclave.grouping import InPlace, Joined
from casemate_enclave.offers import Offer, Offers, cut_of
from casemate_enclave.pacing import Pacing
from casemate_enclave.places import Places
from casemate_enclave.watchdog import OnTermination

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from casemate.attestation.structures import ServiceLimits
    from casemate.sealed_model import Serving
    from casemate_enclave.batching import Tensors
    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.runs import Asker, Pipelined, Run, Together
    from casemate_enclave.runtime import LastingModel, Meanwhile


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one model may take, from its header and the configuration, the narrower of both."""

    places: int  # runs at a time
    queue: int
    run_s: float
    axis: int | None
    request_rows: int | None
    batch_rows: int | None

    @classmethod
    def of(cls, serving: Serving, configured: ServiceLimits) -> Bounds:
        """Combine the publisher's wish with the operator's measured bounds."""
        most = configured.model_requests
        joined = serving.batch_rows is not None
        places = min(serving.concurrency or _places(configured.threads, joined=joined), most)
        queue = most - places
        return cls(
            places=places,
            queue=queue if serving.queue is None else min(serving.queue, queue),
            run_s=min(serving.run_ms or configured.run_ms, configured.run_ms) / 1000,
            axis=serving.batch_dimension,
            request_rows=serving.request_rows,
            batch_rows=serving.batch_rows,
        )


def _places(threads: int, *, joined: bool) -> int:
    """How many runs at a time make the most of the processors.

    More single runs than twice as many only take turns. Joined runs grow while they wait, so that
    one for each processor is best, quick runs or long ones.
    """
    processors = len(os.sched_getaffinity(0))
    return max(1, (processors if joined else 2 * processors) // threads)


class ScheduledModel:
    """A model behind its bounds; runs as the model itself does, and is as thread-safe."""

    def __init__(
        self,
        model: LastingModel,
        bounds: Bounds,
        queued: Callable[[], AbstractContextManager[None]],
        waited: Callable[[int], None] = lambda _: None,
    ) -> None:
        """``queued`` times the waiting; ``waited`` is told microseconds of who has no thread."""
        self._model = model
        self._bounds = bounds
        self._queued = queued
        pacing = Pacing(bounds.batch_rows or 1, bounds.places)
        self._places = Places(bounds.places, bounds.queue, pacing.may_begin)
        self._offers = Offers(model, self._places, pacing, bounds, waited)

    @property
    def quick(self) -> bool:
        """As ``LastingModel``."""
        return self._model.quick

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None = None,
        *,
        repeated: bool = False,
        meanwhile: Meanwhile = None,
    ) -> Tensors:
        """Run at once if a place is free, else in turn; as ``SharedModel.run``.

        Raises RequestError: INVALID_INPUT for too many rows, OVERLOADED if too many wait,
        DEADLINE_EXCEEDED, MODEL_FAILED, UNAVAILABLE.
        """
        owner = cancellation.owner if cancellation else None
        self._model.admit(owner)
        rows = self.rows(inputs)
        if self._places.enter():
            return self._run(
                *(inputs, outputs, deadline, cancellation), repeated=repeated, meanwhile=meanwhile
            )
        job = Job(inputs, outputs, deadline, rows=rows, axis=self._bounds.axis, owner=owner)
        job.alone |= repeated
        given_up = OnTermination(lambda: self._places.give_up(job))
        leaving = cancellation.ending(given_up) if cancellation else nullcontext()
        with self._queued():
            if self._places.enqueue(job):
                with leaving:
                    self._places.await_turn(job)
        if repeated:
            return self._run(inputs, outputs, deadline, cancellation, repeated=True)
        return self._lead(job, cancellation) if job.answer is None else job.answer

    def rows(self, inputs: Tensors) -> int | None:
        """Return how many rows a request has, None of a model without them.

        Raises RequestError(INVALID_INPUT) for more than it takes.
        """
        axis, most = self._bounds.axis, self._bounds.request_rows
        if axis is None:
            return None
        rows = count_rows(inputs, axis)
        if most is not None and rows > most:
            raise RequestError(Code.INVALID_INPUT, f"{rows} rows, the model takes {most}")
        return rows

    def _run(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None,
        *,
        repeated: bool = False,
        meanwhile: Meanwhile = None,
    ) -> Tensors:
        """Run in the place that the caller holds, and give it up."""
        try:
            _await_room(cancellation, deadline)
            until = min(deadline, time.monotonic() + self._bounds.run_s)
            if repeated:
                return self._model.repeat(inputs, outputs, until, cancellation)
            return self._model.run(inputs, outputs, until, cancellation, meanwhile=meanwhile)
        finally:
            self._places.leave()

    # Runs that begin together

    def begin(self, runs: Sequence[Run]) -> Together | None:
        """Begin those of ``runs`` that go together, if runs are quick and a place is free.

        Those that do not have to be waited for one by one, with ``run``. Never waits nor raises.
        """
        if not self._model.quick or not self._places.enter():
            return None
        under_way: Together | None = None
        try:
            under_way = self._begin_one(runs) if len(runs) == 1 else self._begin_several(runs)
        finally:
            if under_way is None:
                self._places.leave()
        return under_way

    def _begin_one(self, runs: Sequence[Run]) -> Pipelined | None:
        """Begin a lone run, which needs one place, and gives it up when it has come back."""
        (run,) = runs
        if self._fitting(run) is None:
            return None
        until = time.monotonic() + self._bounds.run_s
        if run.deadline > until:
            runs = [run._replace(deadline=until)]
        return self._model.begin(runs, ended=self._places.leave)

    def _begin_several(self, runs: Sequence[Run]) -> InPlace | None:
        fit = {
            place: rows
            for place, run in enumerate(runs)
            if (rows := self._fitting(run)) is not None
        }
        under_way = self._begin([runs[place] for place in fit], [*fit.values()]) if fit else None
        if under_way is None:
            return None
        return InPlace(under_way, [*fit], self._places.enter, self._places.leave)

    def _begin(self, runs: Sequence[Run], rows: Sequence[int]) -> Pipelined | None:
        now = time.monotonic()
        if len(runs) > 1 and self._bounds.batch_rows is not None:
            return self._begin_joined(runs, rows, now)
        until = now + self._bounds.run_s
        return self._model.begin(
            [run if run.deadline <= until else run._replace(deadline=until) for run in runs]
        )

    def _begin_joined(
        self, runs: Sequence[Run], rows: Sequence[int], now: float
    ) -> Pipelined | None:
        axis, most = self._bounds.axis or 0, self._bounds.batch_rows or 0
        leader, *others = jobs = [
            Joinable(run.inputs, run.outputs, run.deadline, rows=count, axis=axis)
            for run, count in zip(runs, rows, strict=True)
        ]
        cut = cut_of(leader, now)
        if cut is None:
            return self._model.begin(runs[:1])
        members = gather(leader, others, most, cut)
        group = Group(len(members))
        until = min(cut, now + self._bounds.run_s)
        inputs = join(members, axis)
        run = runs[0]._replace(inputs=inputs, deadline=until, cancellation=group.cancellation)
        under_way = self._model.begin([run])
        taken = [(place, runs[place], job) for place, job in enumerate(jobs) if job in members]
        return under_way and Joined(under_way, taken, axis, group)

    def _fitting(self, run: Run) -> int | None:
        """Return the rows of a run, or 0, if it could begin now if it came by itself, else None."""
        try:
            self._model.admit(run.cancellation.owner if run.cancellation else None)
            rows = self.rows(run.inputs) or 0
        except RequestError:
            return None
        return rows if run.cancellation is None or run.cancellation.await_room(0.0) else None

    def offer(self, runs: Sequence[tuple[Run, object]], asker: Asker) -> set[object]:
        """As ``SharedModel``."""
        if self._bounds.batch_rows is None:
            return set()
        least = time.monotonic() + 2 * limits.BATCH_LEAST_S
        fit = [
            (run, rows, ticket)
            for run, ticket in runs
            if run.deadline > least and (rows := self._fitting(run))
        ]
        return self._offers.take(fit, asker) if fit else set()

    # Runs together

    def _lead(self, leader: Job, cancellation: Cancellation | None) -> Tensors:
        """Run with whoever can be taken along; the leader holds a place."""
        try:
            _await_room(cancellation, leader.deadline)
            answer = self._lead_others(leader, cancellation)
        except BaseException:
            self._places.leave()
            raise
        if answer is None:
            return self._run(leader.inputs, leader.outputs, leader.deadline, cancellation)
        self._places.leave()
        return answer

    def _lead_others(self, leader: Job, cancellation: Cancellation | None) -> Tensors | None:
        """Run together; None if the leader is to run alone."""
        cut = cut_of(leader, time.monotonic())
        most = self._bounds.batch_rows
        if most is None or cut is None:
            return None
        with self._places.lock:
            threads = (job for job in self._places.queue if not isinstance(job, Offer))
            _, *followers = gather(leader, threads, most, cut)
            group = Group(1 + len(followers))
            self._places.take(followers, group)
        if not followers:
            return None
        with cancellation.ending(OnTermination(group.leave)) if cancellation else nullcontext():
            answers = self._together([leader, *followers], cut, group)
        if answers is None:
            self._places.put_back(followers)
            return None
        self._places.hand_out(followers, answers[1:])
        return answers[0]

    def _together(self, members: list[Job], cut: float, group: Group) -> list[Tensors] | None:
        """Run all at once; None if that gave no answer that can be split, for whatever reason."""
        axis = self._bounds.axis or 0
        until = min(cut, time.monotonic() + self._bounds.run_s)
        try:
            inputs, wanted = join(members, axis), members[0].outputs
            outputs = self._model.run(inputs, wanted, until, group.cancellation)
            return split(outputs, members, axis)
        except Exception:  # noqa: BLE001 - each member meets its own failure when it runs alone
            return None


def _await_room(cancellation: Cancellation | None, deadline: float) -> None:
    """Begin no run while too many answers are unsent: each would add to them (SPEC 8.8.4)."""
    if cancellation is not None and not cancellation.await_room(deadline):
        detail = "the answers before this one were not taken in time"
        raise RequestError(Code.DEADLINE_EXCEEDED, detail)
