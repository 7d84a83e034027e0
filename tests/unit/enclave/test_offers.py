"""Requests that wait without a thread, and the runs that they share (SPEC 8.8.2.1; C2, C3, C5)."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate import limits
from casemate.errors import Code, RequestError
from casemate_enclave import offers
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.context import RequestContext, Unsent
from casemate_enclave.hands import Hands
from casemate_enclave.left_to_models import LeftToModels
from casemate_enclave.pacing import Pacing
from casemate_enclave.runs import Left, Run
from casemate_enclave.scheduling import ScheduledModel
from tests.support.attacker import eventually
from tests.support.held_model import (
    AT_FAULT,
    ENDLESS,
    OTHER_ROWS,
    POISON,
    Gate,
    bounds,
    rows,
    scheduled,
)
from tests.support.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casemate_enclave.runs import Outcome


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture(params=["busy", "idle"])
def any_gate(request: pytest.FixtureRequest) -> Gate:
    gate = Gate()
    gate.idle = request.param == "idle"
    return gate


class Asker:
    """Offers one request after the other; what became of each is in ``back``."""

    def __init__(self, model: ScheduledModel, gate: Gate) -> None:
        self.model = model
        self.gate = gate
        self.back: dict[object, Outcome] = {}
        self.flushes = 0
        self._tickets = 0

    def settle(self, ticket: object, outcome: Outcome) -> None:
        assert ticket not in self.back
        self.back[ticket] = outcome

    def settled(self) -> None:
        self.flushes += 1

    def offer(
        self,
        *requests: np.ndarray,
        within: float = 60.0,
        by: Cancellation | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[int]:
        """Offer at once, and return the tickets of what was taken on."""
        deadline = time.monotonic() + within
        tickets = range(self._tickets, self._tickets + len(requests))
        self._tickets += len(requests)
        runs = [
            (Run(self.model, {"x": x}, ["y"], deadline, by, meanwhile), ticket)
            for x, ticket in zip(requests, tickets, strict=True)
        ]
        taken = self.model.offer(runs, self)
        return [ticket for ticket in tickets if ticket in taken]

    def running(self, x: np.ndarray, **how: Any) -> int:  # noqa: ANN401 - offer's
        (ticket,) = self.offer(x, **how)
        assert self.gate.entered.acquire(timeout=60)
        return ticket

    def answers(self, tickets: Sequence[int]) -> list[Any]:
        """First elements of answers, or why there are none."""
        assert eventually(lambda: self.back.keys() >= set(tickets))
        return [self._said(self.back[ticket]) for ticket in tickets]

    @staticmethod
    def _said(outcome: Outcome) -> object:
        if isinstance(outcome, RequestError):
            return outcome.code
        return outcome if isinstance(outcome, Left) else outcome["y"][:, 0].tolist()

    @property
    def free(self) -> int:
        return self.model._places.free


def test_what_waited_runs_together_and_each_gets_its_own_rows(gate: Gate) -> None:
    asker = Asker(scheduled(gate), gate)
    first = asker.running(rows(1))
    waiting = asker.offer(rows(3, 4, 5), rows(1)) + asker.offer(rows(5, 6))
    gate.open.set()
    assert asker.answers([first, *waiting]) == [[2], [6, 8, 10], [2], [10, 12]]
    assert gate.runs == [1, 6]
    assert eventually(lambda: asker.free == 1)
    assert asker.flushes == 2  # once for each run, not for each request


def test_an_idle_model_runs_at_once_what_is_offered_together(gate: Gate) -> None:
    gate.open.set()
    asker = Asker(scheduled(gate), gate)
    assert asker.answers(asker.offer(*(rows(n) for n in range(9)))) == [[2 * n] for n in range(9)]
    assert gate.runs == [9]


def test_rows_of_a_run_are_bounded(gate: Gate) -> None:
    asker = Asker(scheduled(gate, batch_rows=4), gate)
    tickets = [asker.running(rows(0))]
    tickets += asker.offer(rows(1, 2), rows(*[3] * 9), rows(4), rows(5, 6))
    gate.open.set()
    asker.answers(tickets)
    assert gate.runs == [1, 3, 9, 2]


def test_bytes_of_a_run_are_bounded(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BATCH_BYTES_MAX", 3 * 8)
    asker = Asker(scheduled(gate), gate)
    tickets = [asker.running(rows(0)), *asker.offer(*(rows(n) for n in range(5)))]
    gate.open.set()
    asker.answers(tickets)
    assert gate.runs == [1, 3, 2]


def test_only_requests_alike_are_joined(gate: Gate) -> None:
    asker = Asker(scheduled(gate), gate)
    tickets = [asker.running(rows(0))]
    tickets += asker.offer(rows(1), rows(2), rows(3, width=3), rows(4).astype(np.float64))
    gate.open.set()
    assert asker.answers(tickets) == [[0], [2], [4], [6], [8]]
    assert sorted(gate.runs) == [1, 1, 1, 2]


@pytest.mark.parametrize("spoil", OTHER_ROWS.values(), ids=OTHER_ROWS)
def test_c2_an_output_of_other_rows_is_split_among_nobody(
    gate: Gate, spoil: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    gate.spoil = lambda outputs: spoil(outputs) if len(outputs["y"]) > 1 else outputs
    asker = Asker(scheduled(gate), gate)
    first = asker.running(rows(0))
    waiting = asker.offer(rows(1), rows(2))
    gate.open.set()
    assert asker.answers([first, *waiting]) == [[0], Left.ALONE, Left.ALONE]


def test_c2_a_run_that_one_of_them_spoils_is_everybodys_to_repeat_alone(gate: Gate) -> None:
    asker = Asker(scheduled(gate), gate)
    first = asker.running(rows(0))
    waiting = asker.offer(rows(1), rows(POISON), rows(3))
    gate.open.set()
    assert asker.answers([first, *waiting]) == [[0], *[Left.ALONE] * 3]
    assert eventually(lambda: asker.free == 1)


def test_c2_an_endless_row_costs_the_others_half_of_their_time_at_most() -> None:
    def half(within: float) -> bool:
        """Offer; whether the run had half of that, as far as it was begun soon."""
        gate = Gate()
        gate.open.set()
        begun = time.monotonic()
        asker = Asker(scheduled(gate), gate)
        tickets = asker.offer(rows(1), rows(ENDLESS), rows(3), within=within)
        assert asker.answers(tickets) == [Left.ALONE] * 3
        (run,) = gate.begun
        assert begun + 0.45 * within < run.deadline
        return run.deadline < begun + 0.95 * within

    assert patiently(half, bool, (2.0, 20.0))


def test_c5_a_run_ends_after_its_models_time(gate: Gate) -> None:
    gate.open.set()
    asker = Asker(scheduled(gate, run_ms=100), gate)
    asker.offer(rows(ENDLESS))
    assert gate.entered.acquire(timeout=60)
    assert gate.begun[0].deadline < time.monotonic() + 1


def test_c5_while_one_run_takes_long_others_go_on_in_a_further_place(gate: Gate) -> None:
    """Those that waited already, and those that come later."""
    gate.open.set()
    asker = Asker(scheduled(gate, concurrency=2), gate)
    given_up = Cancellation()
    endless = asker.running(rows(ENDLESS), by=given_up)
    assert asker.answers(asker.offer(rows(1), rows(2))) == [[2], [4]]
    assert asker.answers(asker.offer(rows(3))) == [[6]]
    assert endless not in asker.back
    given_up.cancel()
    assert asker.answers([endless]) == [Left.ALONE]
    assert eventually(lambda: asker.free == 2)


def test_runs_that_do_not_take_long_come_one_after_the_other(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that more is joined in each; a full one does not wait."""
    monkeypatch.setattr(limits, "LATE_S", 60.0)
    asker = Asker(scheduled(gate, concurrency=2, batch_rows=4), gate)
    tickets = [asker.running(rows(0))]
    tickets += asker.offer(rows(1), rows(2), rows(3))
    assert not gate.entered.acquire(timeout=0.1)
    assert asker.free == 1
    tickets += asker.offer(rows(4))
    assert gate.entered.acquire(timeout=60)
    gate.open.set()
    assert asker.answers(tickets) == [[0], [2], [4], [6], [8]]
    assert gate.runs == [1, 4]


@pytest.mark.parametrize("patience_s", [60.0, 0.0])
def test_the_next_run_waits_a_moment_for_as_many_as_the_one_before_had(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    monkeypatch.setattr(Pacing, "patience_s", patience_s)
    asker = Asker(scheduled(gate), gate)
    tickets = [asker.running(rows(0)), *asker.offer(rows(1), rows(2), rows(3))]
    gate.open.set()
    asker.answers(tickets)
    gate.open.clear()
    assert eventually(lambda: asker.free == 1)
    tickets = asker.offer(rows(1), rows(2), rows(3))  # after a pause nothing is waited for
    assert eventually(lambda: gate.runs[2:] == [3])
    tickets += asker.offer(rows(4))
    gate.open.set()
    asker.answers(tickets[:3])
    if not patience_s:
        assert asker.answers(tickets) == [[2], [4], [6], [8]]
        return
    assert not eventually(lambda: len(gate.runs) > 3, 0.1)
    tickets += asker.offer(rows(5), rows(6))
    assert asker.answers(tickets) == [[2], [4], [6], [8], [10], [12]]
    assert gate.runs == [1, 3, 3, 3]


def test_a_run_waits_no_longer_than_the_last_took_and_not_after_a_long_one() -> None:
    pacing = Pacing(32, 2)
    for took_s in (limits.LATE_S / 2, limits.LATE_S * 2):
        pacing.begin(1, time.monotonic() - took_s)
        pacing.end(1)
        if took_s > limits.LATE_S:
            assert pacing.patience_s == 0
        else:
            assert pacing.patience_s == 0 or took_s <= pacing.patience_s <= limits.LATE_S


def test_runs_that_take_long_leave_some_to_the_other_places(gate: Gate) -> None:
    asker = Asker(scheduled(gate, concurrency=2), gate)
    asker.model._offers._pacing._took.extend([1.0] * 8)
    tickets = asker.offer(*(rows(n) for n in range(10)))
    gate.open.set()
    assert asker.answers(tickets) == [[2 * n] for n in range(10)]
    assert max(gate.runs) == 5


def test_c5_a_deadline_that_passes_while_it_waits_ends_a_request(gate: Gate) -> None:
    """Whatever the run does for which it waits; so does giving it up."""
    asker = Asker(scheduled(gate), gate)
    first = asker.running(rows(0))
    given_up = Cancellation()
    late = patiently(lambda within: asker.offer(rows(1), within=within), bool)
    gone = asker.offer(rows(2), by=given_up)
    kept = asker.offer(rows(3))
    given_up.cancel()
    assert asker.answers([*late, *gone]) == [Code.DEADLINE_EXCEEDED] * 2
    assert not asker.back.keys() & {first, *kept}
    gate.open.set()
    assert asker.answers([first, *kept]) == [[0], [6]]
    assert gate.runs == [1, 1]


def test_who_has_too_little_time_or_no_rows_is_not_taken_on(gate: Gate) -> None:
    asker = Asker(scheduled(gate, request_rows=2), gate)
    assert asker.offer(rows(1), within=limits.BATCH_LEAST_S) == []
    assert asker.offer(rows()) == []
    assert asker.offer(rows(1, 2, 3)) == []
    assert asker.offer(rows(1), by=asked_by(AT_FAULT)) == []
    plain = Asker(scheduled(gate, batch_rows=None), gate)
    assert plain.offer(rows(1)) == []
    assert gate.runs == []


def asked_by(name: bytes) -> Cancellation:
    cancellation = Cancellation()
    cancellation.owner = name
    return cancellation


def test_c3_one_asker_does_not_fill_the_queue(gate: Gate) -> None:
    asker = Asker(scheduled(gate, queue=16), gate)
    tickets = [asker.running(rows(0))]
    hog = asker.offer(*(rows(n) for n in range(20)), by=asked_by(b"hog"))
    assert len(hog) == 12
    other = asker.offer(*(rows(n) for n in range(20)), by=asked_by(b"other"))
    assert len(other) == 2
    gate.open.set()
    asker.answers([*tickets, *hog, *other])


def test_c3_askers_have_their_turns(gate: Gate) -> None:
    asker = Asker(scheduled(gate, batch_rows=2), gate)
    tickets = [asker.running(rows(0))]
    tickets += asker.offer(*(rows(n) for n in range(1, 6)), by=asked_by(b"hog"))
    tickets += asker.offer(rows(6), by=asked_by(b"a")) + asker.offer(rows(7), by=asked_by(b"b"))
    gate.open.set()
    asker.answers(tickets)
    joined = [sorted(run.inputs["x"][:, 0].tolist()) for run in gate.begun]
    assert joined == [[0], [1, 6], [2, 7], [3, 4], [5]]


def test_no_run_begins_while_too_many_answers_are_unsent(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of what comes then, nor of what waited: that is left to threads, which may wait."""
    monkeypatch.setattr(limits, "UNSENT_BYTES", 1 << 20)
    unsent = Unsent()
    asker = Asker(scheduled(gate), gate)
    first = asker.running(rows(0))
    waiting = asker.offer(rows(1), by=RequestContext(unsent))
    assert len(waiting) == 1
    RequestContext(unsent).hold((bytes(1 << 20),))
    assert asker.offer(rows(2), by=RequestContext(unsent)) == []
    gate.open.set()
    assert asker.answers([first, *waiting]) == [[0], Left.ALONE]


def test_a_lone_request_begins_before_a_thread_is_woken_for_it(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "_HANDS", hands := HeldHands())
    gate.idle = True
    gate.open.set()
    asker = Asker(scheduled(gate), gate)
    lone = asker.running(rows(1))
    assert len(gate.begun) == 1
    several = [*asker.offer(rows(2)), *asker.offer(rows(3), rows(4))]
    assert len(gate.begun) == 1  # they wait for it
    hands.let_go()
    assert asker.answers([lone, *several]) == [[2], [4], [6], [8]]
    assert gate.runs == [1, 3]
    assert eventually(lambda: asker.free == 1 and not asker.model._offers._leaders)
    hands.hold()
    asker.offer(rows(5), rows(6))
    assert len(gate.begun) == 2  # whatever has to be joined is a thread's
    hands.let_go()


class HeldHands(Hands):
    """Does nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.hold()

    def hold(self) -> None:
        self._kept: list[Callable[[], None]] | None = []

    def take(self, task: Callable[[], None]) -> None:
        if self._kept is None:
            super().take(task)
        else:
            self._kept.append(task)

    def let_go(self) -> None:
        kept, self._kept = self._kept or [], None
        for task in kept:
            self.take(task)


@pytest.mark.parametrize("idle", [False, True])
def test_c5_what_its_asker_left_before_a_thread_came_is_given_up(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, *, idle: bool
) -> None:
    monkeypatch.setattr(offers, "_HANDS", hands := HeldHands())
    gate.idle = idle
    gate.open.set()
    asker = Asker(scheduled(gate), gate)
    given_up = Cancellation()
    left = asker.offer(rows(ENDLESS), by=given_up)
    assert len(gate.begun) == idle
    given_up.cancel()
    hands.let_go()
    said = asker.answers([*left, *asker.offer(rows(1))])
    assert said == [Left.ALONE if idle else Code.DEADLINE_EXCEEDED, [2]]


def test_what_can_be_done_while_a_run_goes_on_is_done_then(gate: Gate) -> None:
    asker = Asker(scheduled(gate), gate)
    done: list[int] = []

    def fail() -> None:
        done.append(0)
        raise MemoryError

    tickets = asker.offer(rows(1), meanwhile=fail)
    assert eventually(lambda: done == [0])
    tickets += asker.offer(rows(2), meanwhile=lambda: done.append(2))
    tickets += asker.offer(rows(3), meanwhile=lambda: done.append(3))
    assert not asker.back
    gate.open.set()
    assert asker.answers(tickets) == [[2], [4], [6]]
    assert done == [0, 2, 3]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_joined_run_ends_when_nobody_of_it_waits_any_more(
    gate: Gate, order: tuple[int, ...]
) -> None:
    gate.open.set()
    asker = Asker(scheduled(gate), gate)
    leaving = [Cancellation() for _ in range(3)]
    given_up = Cancellation()
    first = asker.running(rows(ENDLESS), by=given_up)
    others = [ticket for by in leaving for ticket in asker.offer(rows(ENDLESS), by=by)]
    given_up.cancel()
    assert asker.answers([first]) == [Left.ALONE]
    assert gate.entered.acquire(timeout=60)
    last = asker.offer(rows(4))
    for place in order[:2]:
        leaving[place].cancel()
    assert not eventually(lambda: asker.back.keys() >= set(last), 0.3)
    leaving[order[2]].cancel()
    assert asker.answers([*others, *last]) == [*[Left.ALONE] * 3, [8]]


def ask(model: ScheduledModel, value: float, by: Cancellation | None = None) -> None:
    """Ask from a thread."""
    with contextlib.suppress(RequestError):
        model.run({"x": rows(value)}, ["y"], time.monotonic() + 60, by)


@pytest.mark.parametrize("how", ["its process is gone", "an error"])
@pytest.mark.parametrize("idle", [False, True])
def test_what_cannot_begin_is_left_to_threads(gate: Gate, how: str, *, idle: bool) -> None:
    gate.idle = idle
    gate.lost = how != "an error"
    if how == "an error":
        gate.begin = lambda _, patient: 1 // 0  # type: ignore[method-assign,assignment,misc]
    asker = Asker(scheduled(gate), gate)
    assert asker.answers(asker.offer(rows(1), rows(2))) == [Left.ALONE] * 2
    assert asker.answers(asker.offer(rows(3))) == [Left.ALONE]
    assert eventually(lambda: asker.free == 1)


def test_nothing_is_taken_on_that_nobody_would_look_after(gate: Gate) -> None:
    """All places are held by runs of threads: one of them may be endless."""
    model = scheduled(gate)
    asker = Asker(model, gate)
    thread = threading.Thread(target=ask, args=(model, 1))
    thread.start()
    assert gate.entered.acquire(timeout=60)
    assert asker.offer(rows(2)) == []
    gate.open.set()
    thread.join()


def test_c5_who_waits_behind_a_thread_is_looked_after(gate: Gate) -> None:
    """The run that was offered ends, a thread gets the place; deadlines are kept even so."""
    model = scheduled(gate)
    asker = Asker(model, gate)
    first = asker.running(rows(0))
    held = Cancellation()
    thread = threading.Thread(target=ask, args=(model, ENDLESS, held))
    thread.start()
    assert eventually(lambda: len(model._places.queue) == 1)
    late = patiently(lambda within: asker.offer(rows(1), within=within), bool)
    kept = asker.offer(rows(2))
    gate.open.set()
    assert asker.answers([first, *late]) == [[0], Code.DEADLINE_EXCEEDED]
    held.cancel()
    assert asker.answers(kept) == [[4]]
    thread.join()
    assert eventually(lambda: asker.free == 1 and not model._offers._leaders)


def test_the_time_in_the_queue_is_told() -> None:
    def told(held_s: float) -> bool:
        """Hold the first one up for so long; whether it had not waited so long itself."""
        gate, waited = Gate(), list[int]()
        model = ScheduledModel(gate, bounds(), contextlib.nullcontext, waited.append)
        asker = Asker(model, gate)
        tickets = [asker.running(rows(0)), *asker.offer(rows(1))]
        time.sleep(held_s)
        gate.open.set()
        asker.answers(tickets)
        assert waited[1] >= held_s * 1_000_000
        return waited[0] < held_s * 1_000_000

    assert patiently(told, bool, (0.1, 1.0, 10.0))


def answered(asker: Asker) -> int:
    return sum(not isinstance(said, RequestError | Left) for said in list(asker.back.values()))


def until_answered(asker: Asker, count: int) -> Iterator[int]:
    """Numbers from 1 to 1,500, and on until so many were answered."""
    for number in itertools.count(1):
        if number > 1500 and answered(asker) >= count:
            return
        yield number


def test_no_request_is_lost_or_answered_with_anothers_rows(any_gate: Gate) -> None:
    """A storm: poisoned, late, given up and good, some of them from threads."""
    gate = any_gate
    gate.open.set()
    model = scheduled(gate, concurrency=2, batch_rows=16)
    asker = Asker(model, gate)
    dice = random.Random(7)
    asked: dict[int, float] = {}
    threads = []
    for number in until_answered(asker, 200):
        value = POISON if number % 97 == 0 else float(number)
        by = Cancellation()
        for ticket in asker.offer(rows(*[value] * (1 + number % 3)), by=by):
            asked[ticket] = value
        if number % 31 == 0:
            by.cancel()
        if number % 50 == 0:
            threads.append(threading.Thread(target=ask, args=(model, value)))
            threads[-1].start()
        if dice.random() < 0.05:
            time.sleep(0.002)
    for ticket, said in zip(asked, asker.answers(list(asked)), strict=True):
        if isinstance(said, list):
            assert set(said) == {2 * asked[ticket]}
            assert asked[ticket] != POISON
    for thread in threads:
        thread.join()
    assert answered(asker) >= 200
    assert eventually(lambda: asker.free == 2 and not model._offers._leaders)
    assert not model._places.queue
    assert model._offers._pacing.waiting == 0
    assert gate.most <= 2


# Threads, and the connection's side


def test_hands_do_all_at_once_and_end_but_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "THREAD_IDLE_S", 0.05)
    hands = Hands()
    together = threading.Barrier(5)
    named: set[threading.Thread] = set()

    def task() -> None:
        named.add(threading.current_thread())
        together.wait(60)

    for _ in range(2):
        for _ in range(4):
            hands.take(task)
        together.wait(60)
        assert eventually(lambda: sum(thread.is_alive() for thread in named) == 1)


def test_where_no_thread_is_to_be_had_a_task_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands()
    done: list[int] = []
    held = threading.Event()
    hands.take(lambda: (done.append(1), held.wait(60)))  # type: ignore[arg-type,func-returns-value]
    assert eventually(lambda: done == [1])

    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "hands":  # and no other thread of this process
            raise RuntimeError
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    hands.take(lambda: done.append(2))
    held.set()
    assert eventually(lambda: done == [1, 2])


class Question:
    need: Run | None = Run(None, {}, [], 0.0)  # type: ignore[arg-type]


class Taking:
    """A model that takes on whatever is offered."""

    def offer(self, runs: Any, asker: Any) -> set[object]:  # noqa: ANN401
        self.asker = asker
        return {ticket for _, ticket in runs}


@pytest.mark.parametrize("at", ["resume", "flush"])
def test_what_goes_wrong_on_anothers_thread_ends_the_connection(at: str) -> None:
    failed: list[str] = []

    def broken(*_: object) -> None:
        raise OSError

    left: LeftToModels[Question] = LeftToModels(
        resume=broken if at == "resume" else lambda *_: None,
        flush=broken if at == "flush" else lambda: None,
        fail=lambda: failed.append("failed"),
    )
    model, question = Taking(), Question()
    assert left.offer(model, [question]) == []  # type: ignore[arg-type]
    waiting = threading.Thread(target=left.wait)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    model.asker.settle(question, Left.ALONE)
    model.asker.settled()
    waiting.join(60)
    assert not waiting.is_alive()
    assert failed == ["failed"]
