"""Joined runs of requests that no thread waits for: they were offered (SPEC 8.8.2.1).

A thread leads each run: it takes along what waits, begins it, hands out what comes back and goes on
with what waits then. So a request costs neither a thread nor a wake of its own. One that comes when
nothing is under way is begun by who offers it: its thread is woken while it runs already.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import Code, RequestError
from casemate_enclave.batching import Group, Job, Joinable, State, gather, join
from casemate_enclave.grouping import Joined
from casemate_enclave.hands import Hands
from casemate_enclave.runs import Left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from casemate_enclave.pacing import Pacing
    from casemate_enclave.places import Places
    from casemate_enclave.runs import Asker, Outcome, Run
    from casemate_enclave.runtime import LastingModel
    from casemate_enclave.scheduling import Bounds

_HANDS: Final = Hands()  # of all models: at most as many as these have places, and one


class Offer(Job):
    """A request that waits without a thread."""

    __slots__ = ("asker", "begun", "lead", "run", "since", "ticket")
    has_thread = False

    def __init__(
        self,
        run: Run,
        asker: Asker,
        ticket: object,
        *,
        rows: int,
        axis: int,
        lead: Callable[[Offer], None],
    ) -> None:
        """``lead`` is called when it is granted a place, under the lock of the places."""
        owner = run.cancellation.owner if run.cancellation else None
        super().__init__(run.inputs, run.outputs, run.deadline, rows=rows, axis=axis, owner=owner)
        self.run = run
        self.asker = asker
        self.ticket = ticket
        self.lead = lead
        self.since = self.begun = time.monotonic()

    def rouse(self) -> None:
        """Have somebody lead it."""
        self.lead(self)

    @property
    def is_waited_for(self) -> bool:
        """Whether its time is not over, and nobody gave it up."""
        given_up = self.run.cancellation is not None and self.run.cancellation.cancelled
        return self.deadline > time.monotonic() and not given_up

    @property
    def has_room(self) -> bool:
        """Whether a run may add to the answers that are unsent (SPEC 8.8.4)."""
        return self.run.cancellation is None or self.run.cancellation.await_room(0.0)

    def settle(self, outcome: Outcome, waited: Callable[[int], None]) -> Asker:
        """Tell the asker what became of it, and return that."""
        waited(int((self.begun - self.since) * 1_000_000))
        self.asker.settle(self.ticket, outcome)
        return self.asker


class Offers:
    """Those of one model; thread-safe."""

    def __init__(
        self,
        model: LastingModel,
        places: Places,
        pacing: Pacing,
        bounds: Bounds,
        waited: Callable[[int], None],
    ) -> None:
        """``waited`` is told the microseconds that a request waited, just before it is settled."""
        self._model = model
        self._places = places
        self._pacing = pacing
        self._bounds = bounds
        self._axis = bounds.axis or 0
        self._waited = waited
        self._more = threading.Condition(places.lock)
        self._leaders = 0  # changed under the lock of the places alone

    def take(self, runs: Iterable[tuple[Run, int, object]], asker: Asker) -> set[object]:
        """Let runs wait, each with its rows and its ticket; return the tickets of those taken.

        A lone one begins here if its turn has come. It is not waited for.
        """
        offers = [
            Offer(run, asker, ticket, rows=rows, axis=self._axis, lead=self._lead)
            for run, rows, ticket in runs
        ]
        places = self._places
        taken: set[object] = set()
        here: list[Offer] = []
        with places.lock:
            if not (places.free or self._leaders):
                return taken  # nobody would look after them
            for offer in offers:
                if places.queue.has_room(offer.owner):
                    places.queue.append(offer)
                    taken.add(offer.ticket)
            self._pacing.waiting += len(taken)
            self._more.notify_all()
            if len(offers) == self._pacing.waiting == 1:
                offers[0].lead = here.append
            places.grant()
            offers[0].lead = self._lead
            for _ in here:
                self._note_lead()
        for offer in here:
            _HANDS.take(partial(self._work, offer, self._begun(offer)))
        return taken

    # Leading

    def _lead(self, offer: Offer) -> None:
        self._note_lead()
        _HANDS.take(partial(self._work, offer))

    def _note_lead(self) -> None:
        self._pacing.waiting -= 1
        self._leaders += 1

    def _begun(self, leader: Offer) -> Joined | None:
        """Begin a run by itself; None if that is a thread's to try."""
        leader.begun = time.monotonic()
        with self._places.lock:
            self._pacing.begin(id(leader), leader.begun)
        try:
            return self._begin([leader], patient=False)
        except Exception:  # noqa: BLE001 - then the thread meets it
            return None

    def _work(self, leader: Offer | None, together: Joined | None = None) -> None:
        """``together``: the first one's run, if it has begun."""
        members: list[Offer] = []
        while leader is not None:
            if together is None:
                self._linger(len(members))
            members = [leader] if together else self._members(leader)
            outcomes = self._outcomes(members, together)
            together = None
            self._settle(
                (member, outcomes.get(place, Left.ALONE)) for place, member in enumerate(members)
            )
            leader = self._next()

    def _linger(self, before: int) -> None:
        """Let as many come as the run before had, for a moment: who was answered asks again."""
        with self._places.lock:
            self._more.wait_for(lambda: self._pacing.waiting + 1 >= before, self._pacing.patience_s)

    def _members(self, leader: Offer) -> list[Offer]:
        """Take along what waits."""
        now = time.monotonic()
        cut = cut_of(leader, now)
        members = [leader]
        places = self._places
        with places.lock:
            self._pacing.begin(id(leader), now)
            if cut is not None and leader.is_waited_for:
                others = (job for job in places.queue if isinstance(job, Offer))
                members = gather(leader, others, self._pacing.rows, cut)
            for member in members[1:]:
                places.queue.remove(member)
                member.state = State.JOINED
            self._pacing.waiting -= len(members) - 1
        for member in members:
            member.begun = now
        return members

    def _outcomes(self, members: Sequence[Offer], together: Joined | None) -> Mapping[int, Outcome]:
        """Run; by place what became of members, nothing of those that are to run alone."""
        leader = members[0]
        try:
            if together is None:
                if not leader.is_waited_for:
                    return {0: _late()}
                together = self._begin(members) if leader.has_room else None
            if together is None:
                return {}
            _use_the_time(members)
            return self._await(together)
        except Exception:  # noqa: BLE001 - each member meets its own failure when it runs alone
            return {}
        finally:
            with self._places.lock:
                self._pacing.end(id(leader))

    def _begin(self, members: Sequence[Offer], *, patient: bool = True) -> Joined | None:
        leader, now = members[0], members[0].begun
        cut = cut_of(leader, now)
        if cut is None:
            return None
        group = Group(len(members))
        run = leader.run._replace(
            inputs=join(members, self._axis) if len(members) > 1 else leader.inputs,
            deadline=min(cut, now + self._bounds.run_s),
            cancellation=group.cancellation,
        )
        under_way = self._model.begin([run], patient=patient)
        jobs = [(place, member.run, member) for place, member in enumerate(members)]
        return Joined(under_way, jobs, self._axis, group) if under_way else None

    def _await(self, together: Joined) -> Mapping[int, Outcome]:
        back: dict[int, Outcome] = {}
        patience_s = limits.LATE_S
        while not together.done:
            came = together.receive(min(patience_s, limits.HANG_UP_LOOK_S))
            back.update(came)
            if not came and not together.done:
                patience_s = together.hurry()
                self._look_after()
        return back

    def _settle(self, back: Iterable[tuple[Offer, Outcome]]) -> None:
        askers = {id(asker): asker for asker in (o.settle(what, self._waited) for o, what in back)}
        for asker in askers.values():
            asker.settled()

    def _next(self) -> Offer | None:
        """Return who is led next in the place of this thread, or give the place up.

        The last thread stays as long as somebody waits, even without a place.
        """
        places = self._places
        with places.lock:
            job = places.queue.first if places.queue else None
            if isinstance(job, Offer) and self._pacing.may_begin(job):
                places.queue.pop()
                self._pacing.waiting -= 1
                return job
            places.free += 1
            places.grant()
        while not self._is_over():
            time.sleep(limits.LATE_S)
            self._look_after()
        return None

    def _is_over(self) -> bool:
        with self._places.lock:
            over = not self._pacing.waiting or self._leaders > 1
            self._leaders -= over
            return over

    def _look_after(self) -> None:
        """Give places to those that wait; settle those that are not waited for any more."""
        places = self._places
        with places.lock:
            places.grant()
            ended = [o for o in places.queue if isinstance(o, Offer) and not o.is_waited_for]
            for offer in ended:
                places.queue.remove(offer)
                offer.begun = time.monotonic()
            self._pacing.waiting -= len(ended)
        self._settle((offer, _late()) for offer in ended)


def _use_the_time(members: Iterable[Offer]) -> None:
    """Do what can be done while they run; what fails here is done later."""
    for member in members:
        if member.run.meanwhile is not None:
            with contextlib.suppress(Exception):
                member.run.meanwhile()


def _late() -> RequestError:
    detail = "the deadline passed before the model ran, or nobody waited any more"
    return RequestError(Code.DEADLINE_EXCEEDED, detail)


def cut_of(leader: Joinable, now: float) -> float | None:
    """Return until when a joined run may take; None if ``leader`` is to run alone.

    Others' rows may cost nobody more than half of its time.
    """
    half = (leader.deadline - now) / 2
    return None if leader.alone or half < limits.BATCH_LEAST_S else now + half
