"""Runs that a worker was sent in one packet: it does one after the other (SPEC 8.10.2)."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from casemate import limits
from casemate_enclave.refusals import Failure, RunError
from casemate_enclave.runs import Left
from casemate_enclave.watchdog import OnTermination
from casemate_enclave.workers.line import WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.runs import Outcome, Run
    from casemate_enclave.workers.line import Line
    from casemate_enclave.workers.process import Worker
    from casemate_enclave.workers.tensors import Array

_PATIENCE_MAX_S = 0.1


class Pipeline:
    """What has not come back of the runs on one line; a ``Together``.

    As long as nothing takes long nobody watches over a single run: neither the watchdog nor what
    gives it up knows of it. ``hurry`` makes up for that.
    """

    def __init__(
        self,
        worker: Worker,
        line: Line,
        runs: Sequence[Run],
        numbers: dict[int, int],
        ended: Callable[[bool], None],
    ) -> None:
        """``numbers``: by which the worker knows its runs, and their places in ``runs``.

        ``ended`` is called once when all have come back, with True if the worker ended before.
        """
        self.members: Sequence[int] = tuple(numbers.values())
        self._worker = worker
        self._line = line
        self._runs = runs
        self._under_way = numbers
        self._ended = ended
        self._watched: dict[int, tuple[Cancellation, OnTermination]] = {}
        self._given_up: set[int] = set()
        self._patience_s = limits.LATE_S
        self._hurried = False

    @property
    def done(self) -> bool:
        """Whether all have come back, also those that were given up."""
        return not self._under_way

    def receive(self, patience_s: float) -> list[tuple[int, Outcome]]:
        """As ``Together``; those that could not even begin before their deadline are given up."""
        back = self._expired() if self._hurried else []
        try:
            for number, outcome in self._line.receive(0 if back else patience_s):
                self._take(number, outcome, back)
        except WorkerLostError:
            self._lose(back)
            return back
        if not self._under_way:
            self._worker.keep(self._line)
            self._ended(False)
        return back

    def _take(
        self,
        number: int,
        outcome: dict[str, Array] | RunError | None,
        back: list[tuple[int, Outcome]],
    ) -> None:
        place = self._under_way.get(number)
        if place is None:
            raise WorkerLostError
        if isinstance(outcome, dict) and [*outcome] != [*self._runs[place].outputs]:
            raise WorkerLostError
        del self._under_way[number]
        if self._watched:
            self._unwatch(number)
        if place not in self._given_up:
            back.append((place, Left.ALONE if outcome is None else outcome))

    def _lose(self, back: list[tuple[int, Outcome]]) -> None:
        self._worker.kill()
        self._line.close()
        for number, place in self._under_way.items():
            self._unwatch(number)
            if place not in self._given_up:
                back.append((place, Left.LOST))
        self._under_way.clear()
        self._ended(True)

    # When one of them takes long

    @property
    def left(self) -> int:
        """How many have not come back, of which all but one may not have begun."""
        return len(self._under_way)

    def split(self) -> None:
        """Have one more thread of the worker do what has not begun."""
        self._worker.split(self._line.number)

    def hurry(self) -> float:
        """Have runs end when they are given up, and the worker if one does not end in time."""
        if not self._hurried:
            self._hurried = True
            for number, place in self._under_way.items():
                self._watch(number, self._runs[place])
        # They begin in this order.
        first = self._runs[next(iter(self._under_way.values()))]
        left_s = first.deadline + limits.WORKER_GRACE_S - time.monotonic()
        if left_s <= 0:
            self._worker.kill()
            return _PATIENCE_MAX_S
        self._patience_s = min(2 * self._patience_s, _PATIENCE_MAX_S)
        return min(left_s, self._patience_s) if self.left > 1 else left_s

    def _expired(self) -> list[tuple[int, Outcome]]:
        now = time.monotonic()
        late = [
            place
            for place in list(self._under_way.values())[1:]
            if self._runs[place].deadline < now and place not in self._given_up
        ]
        self._given_up.update(late)
        return [(place, RunError(Failure.STOPPED)) for place in late]

    def _watch(self, number: int, run: Run) -> None:
        if run.cancellation is not None:
            cancelled = OnTermination(partial(self._worker.cancel, number))
            self._watched[number] = run.cancellation, cancelled
            run.cancellation.begin(cancelled)

    def _unwatch(self, number: int) -> None:
        if number in self._watched:
            cancellation, cancelled = self._watched.pop(number)
            cancellation.end(cancelled)
