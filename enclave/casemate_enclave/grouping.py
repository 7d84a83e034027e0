"""Runs that begin together in one place of a model: joined, or one after the other (SPEC 8.8.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from casemate_enclave.batching import Group, Joinable, split
from casemate_enclave.runs import Left, Run
from casemate_enclave.watchdog import OnTermination

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate_enclave.runs import Outcome, Pipelined


class InPlace:
    """Runs under way that hold a place, or more once one of them takes long; a ``Together``."""

    def __init__(
        self,
        runs: Pipelined,
        places: Sequence[int],
        enter: Callable[[], bool],
        leave: Callable[[], None],
    ) -> None:
        """The caller has entered once; ``enter`` takes a further place if there is one.

        ``places``: where ``runs`` are in what was to begin.
        """
        self.members = [places[at] for at in runs.members]
        self._runs = runs
        self._at = places
        self._enter = enter
        self._leave = leave
        self._places = 1

    @property
    def done(self) -> bool:
        """As ``Together``."""
        return self._runs.done

    def receive(self, patience_s: float) -> list[tuple[int, Outcome]]:
        """As ``Together``."""
        back = self._runs.receive(patience_s)
        while self._places > self._runs.left:
            self._places -= 1
            self._leave()
        return [(self._at[at], outcome) for at, outcome in back]

    def hurry(self) -> float:
        """As ``Together``: what has not begun takes a further place, if one is free."""
        if self._places < self._runs.left and self._enter():
            self._places += 1
            self._runs.split()
        return self._runs.hurry()


class Joined:
    """One run for several, split by rows when it has come back; a ``Pipelined``."""

    def __init__(
        self, run: Pipelined, jobs: Sequence[tuple[int, Run, Joinable]], axis: int, group: Group
    ) -> None:
        self.members = [place for place, _, _ in jobs]
        self._run = run
        self._jobs = jobs
        self._axis = axis
        self._group = group
        self._leaving: list[OnTermination] = []

    @property
    def done(self) -> bool:
        """As ``Together``."""
        return self._run.done

    @property
    def left(self) -> int:
        """As ``Pipelined``: for a worker it is one run."""
        return self._run.left

    def receive(self, patience_s: float) -> list[tuple[int, Outcome]]:
        """As ``Together``: all at once, or each is to run by itself."""
        back: list[tuple[int, Outcome]] = []
        for _, outcome in self._run.receive(patience_s):
            back = list(zip(self.members, self._outcomes(outcome), strict=True))
        if self._run.done:
            for (_, run, _), leaving in zip(self._jobs, self._leaving, strict=False):
                if run.cancellation is not None:
                    run.cancellation.end(leaving)
        return back

    def _outcomes(self, outcome: Outcome) -> Sequence[Outcome]:
        jobs = [job for _, _, job in self._jobs]
        answers = split(outcome, jobs, self._axis) if isinstance(outcome, Mapping) else None
        return answers or [Left.ALONE] * len(jobs)

    def split(self) -> None:
        """Nothing: it is one."""

    def hurry(self) -> float:
        """As ``Together``: it ends when nobody waits for any of them any more."""
        if not self._leaving:
            self._leaving = [OnTermination(self._group.leave) for _ in self._jobs]
            for (_, run, _), leaving in zip(self._jobs, self._leaving, strict=True):
                if run.cancellation is not None:
                    run.cancellation.begin(leaving)
        return self._run.hurry()
