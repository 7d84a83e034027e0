"""Places, queue and joined runs (SPEC 8.8; THREATS C2, C5).

The model here is a function whose runs a test holds back, so that it says who waits for whom.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate.attestation.structures import ServiceLimits
from casemate.errors import CasemateError, Code, RequestError
from casemate.sealed_model import Serving
from casemate_enclave.batching import Job
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.context import RequestContext, Unsent
from casemate_enclave.fair_queue import FairQueue
from casemate_enclave.runs import Run
from casemate_enclave.scheduling import Bounds
from tests.support.attacker import eventually
from tests.support.held_model import AT_FAULT, ENDLESS, OTHER_ROWS, POISON, Gate, rows, scheduled
from tests.support.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casemate_enclave.scheduling import ScheduledModel
    from tests.support.held_model import Tensors


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


class Asker:
    """Asks a model from threads of its own and waits until each request is where it must be."""

    def __init__(self, model: ScheduledModel, pool: ThreadPoolExecutor, gate: Gate) -> None:
        self.model = model
        self.pool = pool
        self.gate = gate

    def ask(
        self,
        x: np.ndarray,
        outputs: Sequence[str] = ("y",),
        within: float = 60.0,
        cancellation: Cancellation | None = None,
    ) -> Future[Any]:
        deadline = time.monotonic() + within
        return self.pool.submit(self.model.run, {"x": x}, list(outputs), deadline, cancellation)

    def running(self, x: np.ndarray, **how: Any) -> Future[Any]:  # noqa: ANN401 - ask's
        future = self.ask(x, **how)
        assert self.gate.entered.acquire(timeout=60)
        return future

    def waiting(self, x: np.ndarray, **how: Any) -> Future[Any]:  # noqa: ANN401 - ask's
        before = len(self.model._places.queue)
        future = self.ask(x, **how)
        assert eventually(lambda: len(self.model._places.queue) > before or future.done())
        return future


def end_of(future: Future[Any]) -> float | Code:
    """The first value of the answer, or why there is none."""
    try:
        return float(future.result(100)["y"][0, 0])
    except CasemateError as refused:
        return refused.code


def code_of(future: Future[Any]) -> Code:
    code = end_of(future)
    assert isinstance(code, Code)
    return code


def test_who_finds_a_place_runs_at_once(gate: Gate, pool: ThreadPoolExecutor) -> None:
    asker = Asker(scheduled(gate, concurrency=3), pool, gate)
    futures = [asker.running(rows(value)) for value in (1, 2, 3)]
    assert gate.runs == [1, 1, 1]
    gate.open.set()
    assert [future.result(60)["y"][0, 0] for future in futures] == [2, 4, 6]


def test_who_waited_runs_together_and_gets_its_own_rows(
    gate: Gate, pool: ThreadPoolExecutor
) -> None:
    asker = Asker(scheduled(gate), pool, gate)
    first = asker.running(rows(1))
    waiting = [asker.waiting(rows(*range(n, 2 * n))) for n in (3, 1, 5)]
    gate.open.set()
    assert first.result(60)["y"].tolist() == [[2, 2]]
    for n, future in zip((3, 1, 5), waiting, strict=True):
        assert future.result(60)["y"].tolist() == (rows(*range(n, 2 * n)) * 2).tolist()
    assert gate.runs == [1, 9]


def test_rows_of_a_joined_run_are_bounded(gate: Gate, pool: ThreadPoolExecutor) -> None:
    asker = Asker(scheduled(gate, batch_rows=4), pool, gate)
    first = asker.running(rows(0))
    waiting = [asker.waiting(rows(1, 2)), asker.waiting(rows(*[3] * 9)), asker.waiting(rows(4))]
    waiting.append(asker.waiting(rows(5, 6)))
    gate.open.set()
    for future in [first, *waiting]:
        future.result(60)
    assert gate.runs == [1, 3, 9, 2]


def test_bytes_of_a_joined_run_are_bounded(
    gate: Gate, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casemate.limits.BATCH_BYTES_MAX", 3 * 8)
    asker = Asker(scheduled(gate), pool, gate)
    futures = [asker.running(rows(0)), *(asker.waiting(rows(n)) for n in range(5))]
    gate.open.set()
    for future in futures:
        future.result(60)
    assert gate.runs == [1, 3, 2]


def test_only_requests_alike_are_joined(gate: Gate, pool: ThreadPoolExecutor) -> None:
    asker = Asker(scheduled(gate), pool, gate)
    first = asker.running(rows(0))
    narrow = [asker.waiting(rows(n)) for n in (1, 2)]
    wide = asker.waiting(rows(3, width=3))
    double = asker.waiting(rows(4).astype(np.float64))
    other = asker.waiting(rows(5), outputs=("y", "z"))
    gate.open.set()
    assert [f.result(60)["y"][0, 0] for f in (first, *narrow)] == [0, 2, 4]
    assert wide.result(60)["y"].tolist() == [[6, 6, 6]]
    assert double.result(60)["y"].dtype == np.float64
    assert sorted(other.result(60)) == ["y", "z"]
    assert sorted(gate.runs) == [1, 1, 1, 1, 2]


def test_whoever_has_less_time_or_no_rows_is_not_taken_along(
    gate: Gate, pool: ThreadPoolExecutor
) -> None:
    asker = Asker(scheduled(gate), pool, gate)
    first = asker.running(rows(0))
    waiting = [asker.waiting(rows(1), within=90), asker.waiting(rows(2), within=30)]
    waiting += [asker.waiting(rows(), within=90), asker.waiting(rows(3), within=90)]
    gate.open.set()
    answers = [future.result(60)["y"][:, 0].tolist() for future in (first, *waiting)]
    assert answers == [[0], [2], [4], [], [6]]
    assert gate.runs == [1, 2, 1, 0]


def test_without_batch_rows_nobody_is_joined(gate: Gate, pool: ThreadPoolExecutor) -> None:
    asker = Asker(scheduled(gate, batch_rows=None), pool, gate)
    futures = [asker.running(rows(0)), *(asker.waiting(rows(n)) for n in (1, 2))]
    gate.open.set()
    assert [future.result(60)["y"][0, 0] for future in futures] == [0, 2, 4]
    assert gate.runs == [1, 1, 1]


def test_c2_a_poisoned_row_fails_alone(gate: Gate, pool: ThreadPoolExecutor) -> None:
    asker = Asker(scheduled(gate), pool, gate)
    first = asker.running(rows(0))
    futures = [asker.waiting(rows(value)) for value in (1, POISON, 3, 4)]
    gate.open.set()
    assert code_of(futures.pop(1)) is Code.MODEL_FAILED
    assert [future.result(60)["y"][0, 0] for future in (first, *futures)] == [0, 2, 6, 8]
    assert gate.runs == [1, 4, 1, 1, 1, 1]


@pytest.mark.parametrize("spoil", OTHER_ROWS.values(), ids=OTHER_ROWS)
def test_c2_an_output_of_other_rows_is_split_among_nobody(
    gate: Gate, pool: ThreadPoolExecutor, spoil: Callable[[Tensors], Tensors]
) -> None:
    gate.spoil = lambda outputs: spoil(outputs) if len(outputs["y"]) > 1 else outputs
    asker = Asker(scheduled(gate), pool, gate)
    futures = [asker.running(rows(0)), *(asker.waiting(rows(n)) for n in (1, 2, 3))]
    gate.open.set()
    assert [future.result(60)["y"].tolist() for future in futures] == [
        [[2 * n, 2 * n]] for n in range(4)
    ]
    assert gate.runs == [1, 3, 1, 1, 1]


def test_c2_an_endless_row_costs_the_others_half_of_their_time_at_most(
    pool: ThreadPoolExecutor,
) -> None:
    def ends(within: float) -> list[object]:
        gate = Gate()
        asker = Asker(scheduled(gate), pool, gate)
        first = asker.running(rows(0))
        begun = time.monotonic()
        futures = [asker.waiting(rows(value), within=within) for value in (1, 3, ENDLESS)]
        gate.open.set()
        answers = [end_of(future) for future in (first, *futures[:2])]
        in_time = time.monotonic() - begun < 0.9 * within
        return [*answers, end_of(futures[2]), in_time, gate.runs]

    expected = [0, 2, 6, Code.DEADLINE_EXCEEDED, True, [1, 3, 1, 1, 1]]
    assert patiently(ends, expected.__eq__, (1.0, 10.0, 40.0)) == expected


def test_a_deadline_that_passes_in_the_queue_frees_its_room(
    gate: Gate, pool: ThreadPoolExecutor
) -> None:
    asker = Asker(scheduled(gate, queue=1), pool, gate)
    first = asker.running(rows(0))

    def ends(within: float) -> list[float | Code]:
        late = asker.waiting(rows(1), within=within)
        return [end_of(asker.ask(rows(2), within=within)), end_of(late)]

    expected = [Code.OVERLOADED, Code.DEADLINE_EXCEEDED]
    assert patiently(ends, expected.__eq__, (0.1, 1.0, 10.0)) == expected
    second = asker.waiting(rows(3))
    gate.open.set()
    assert [future.result(60)["y"][0, 0] for future in (first, second)] == [0, 6]


def test_whoever_is_not_waited_for_leaves_the_queue(gate: Gate, pool: ThreadPoolExecutor) -> None:
    asker = Asker(scheduled(gate, queue=1), pool, gate)
    cancellation = Cancellation()
    first = asker.running(rows(0))
    gone = asker.waiting(rows(1), cancellation=cancellation)
    cancellation.cancel()
    assert code_of(gone) is Code.DEADLINE_EXCEEDED
    second = asker.waiting(rows(3))
    gate.open.set()
    assert [future.result(60)["y"][0, 0] for future in (first, second)] == [0, 6]
    assert gate.runs == [1, 1]
    assert asker.model._places.free == 1


def asked_by(name: bytes) -> Cancellation:
    cancellation = Cancellation()
    cancellation.owner = name
    return cancellation


def test_c3_askers_have_their_turns_however_many_requests_one_of_them_has(
    gate: Gate, pool: ThreadPoolExecutor
) -> None:
    asker = Asker(scheduled(gate, batch_rows=None), pool, gate)
    futures = [asker.running(rows(0))]
    for value, name in enumerate([b"hog"] * 5 + [b"a", b"b", b"a"], 1):
        futures.append(asker.waiting(rows(value), cancellation=asked_by(name)))
    gate.open.set()
    for future in futures:
        future.result(60)
    assert gate.firsts == [0, 1, 6, 7, 2, 8, 3, 4, 5]


def test_c3_one_asker_does_not_fill_the_queue(gate: Gate, pool: ThreadPoolExecutor) -> None:
    asker = Asker(scheduled(gate, batch_rows=None, queue=16), pool, gate)
    futures = [asker.running(rows(0))]
    futures += [asker.waiting(rows(1), cancellation=asked_by(b"hog")) for _ in range(12)]
    assert code_of(asker.ask(rows(1), cancellation=asked_by(b"hog"))) is Code.OVERLOADED
    futures += [asker.waiting(rows(1), cancellation=asked_by(b"other")) for _ in range(2)]
    assert code_of(asker.ask(rows(1), cancellation=asked_by(b"other"))) is Code.OVERLOADED
    futures += [asker.waiting(rows(1), cancellation=asked_by(b"%d" % n)) for n in range(2)]
    assert code_of(asker.ask(rows(1), cancellation=asked_by(b"late"))) is Code.OVERLOADED
    gate.open.set()
    for future in futures:
        future.result(60)


def test_c5_an_asker_at_fault_neither_runs_nor_waits_nor_is_joined(
    gate: Gate, pool: ThreadPoolExecutor
) -> None:
    model = scheduled(gate)
    asker = Asker(model, pool, gate)
    at_fault, other = asked_by(AT_FAULT), asked_by(b"other")
    assert code_of(asker.ask(rows(1), cancellation=at_fault)) is Code.UNAVAILABLE
    soon = time.monotonic() + 60
    runs = [Run(model, {"x": rows(1)}, ["y"], soon, by) for by in (other, at_fault)]
    assert [model._fitting(run) for run in runs] == [1, None]
    future = asker.running(rows(0))
    assert code_of(asker.ask(rows(1), cancellation=at_fault)) is Code.UNAVAILABLE
    gate.open.set()
    future.result(60)
    assert len(gate.runs) == 1


def full(monkeypatch: pytest.MonkeyPatch) -> tuple[Unsent, RequestContext]:
    """Answers that are not taken, as many as there may be, and a further question."""
    monkeypatch.setattr("casemate.limits.UNSENT_BYTES", 1 << 20)
    unsent = Unsent()
    RequestContext(unsent).hold((bytes(1 << 20),))
    return unsent, RequestContext(unsent)


def test_an_answer_is_given_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unsent, context = full(monkeypatch)
    context.hold((bytes(1 << 20),))
    for _ in range(2):
        context.release()
    assert unsent.full  # of what the other one holds
    assert unsent._size == 1 << 20


def test_whoever_is_put_back_is_next() -> None:
    def job(owner: bytes) -> Job:
        return Job({"x": rows(1)}, ["y"], 0.0, rows=1, axis=0, owner=owner)

    queue = FairQueue(8)
    first, second, back = job(b"a"), job(b"b"), job(b"c")
    queue.append(first)
    queue.append(second)
    queue.put_back(back)
    assert [queue.pop() for _ in range(len(queue))] == [back, first, second]


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after waiting"])
def test_no_run_begins_while_too_many_answers_are_unsent(
    gate: Gate, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    unsent, context = full(monkeypatch)
    asker = Asker(scheduled(gate), pool, gate)
    first = asker.running(rows(0)) if waits else None
    second = (asker.waiting if waits else asker.ask)(rows(1), cancellation=context)
    gate.open.set()
    if first is not None:
        first.result(60)
    with pytest.raises(TimeoutError):
        second.result(0.3)
    assert gate.runs == [1] * waits
    unsent.free(1)
    assert second.result(60)["y"][0, 0] == 2


def test_whoever_waits_for_answers_to_be_taken_waits_to_its_deadline(
    gate: Gate, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, context = full(monkeypatch)
    asker = Asker(scheduled(gate), pool, gate)
    gate.open.set()
    assert code_of(asker.ask(rows(1), within=0.2, cancellation=context)) is Code.DEADLINE_EXCEEDED
    given_up = asker.ask(rows(1), within=60, cancellation=context)
    context.cancel()
    assert code_of(given_up) is Code.DEADLINE_EXCEEDED
    assert gate.runs == []
    assert asker.model._places.free == 1


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_a_joined_run_ends_when_nobody_of_it_waits_any_more(
    gate: Gate, pool: ThreadPoolExecutor, order: tuple[int, ...]
) -> None:
    """Not before the last has left, whoever leads; then it gives its place to others at once."""
    asker = Asker(scheduled(gate), pool, gate)
    first = asker.running(rows(0))
    leaving = {n: Cancellation() for n in (1, 2, 3)}
    gone = {n: asker.waiting(rows(ENDLESS), within=60, cancellation=leaving[n]) for n in (1, 2, 3)}
    gate.open.set()
    first.result(60)
    assert gate.entered.acquire(timeout=60)
    last = asker.waiting(rows(4), within=60)
    for n in order[:2]:
        leaving[n].cancel()
    with pytest.raises(TimeoutError):
        last.result(0.2)
    leaving[order[2]].cancel()
    assert last.result(60)["y"][0, 0] == 8
    assert {code_of(future) for future in gone.values()} == {Code.DEADLINE_EXCEEDED}
    assert asker.model._places.free == 1
    assert gate.runs[:2] == [1, 3]


def test_a_leader_that_left_spoils_nobodys_run(gate: Gate, pool: ThreadPoolExecutor) -> None:
    asker = Asker(scheduled(gate), pool, gate)
    cancellation = Cancellation()
    first = asker.running(rows(0))
    leader = asker.waiting(rows(1), cancellation=cancellation)
    follower = asker.waiting(rows(2))
    gate.open.set()
    first.result(60)
    cancellation.cancel()
    assert follower.result(60)["y"][0, 0] == 4
    with contextlib.suppress(CasemateError):
        leader.result(60)


def test_a_deadline_that_passes_in_a_joined_run_is_nobody_elses(
    gate: Gate, pool: ThreadPoolExecutor
) -> None:
    asker = Asker(scheduled(gate), pool, gate)
    first = asker.running(rows(0), within=90)
    # The leader, with little time, halves it; who has less than that half is not taken along.
    futures = [asker.waiting(rows(n), within=within) for n, within in ((1, 80), (2, 0.3), (3, 80))]
    assert code_of(futures.pop(1)) is Code.DEADLINE_EXCEEDED
    gate.open.set()
    assert [future.result(60)["y"][0, 0] for future in (first, *futures)] == [0, 2, 6]
    assert gate.runs == [1, 2]


def test_bounds_narrow_and_never_widen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    configured = ServiceLimits(1, 1, 1, 1, run_ms=2000, model_requests=8)
    free = Bounds.of(Serving(), configured)
    assert (free.places, free.queue, free.run_s) == (8, 0, 2.0)
    assert Bounds.of(Serving(), replace(configured, threads=4)).places == 2
    assert Bounds.of(Serving(), replace(configured, threads=64)).places == 1
    wide = Bounds.of(Serving(concurrency=64, queue=64, run_ms=600_000), configured)
    assert (wide.places, wide.queue, wide.run_s) == (8, 0, 2.0)
    narrow = Bounds.of(Serving(concurrency=2, queue=3, run_ms=500), configured)
    assert (narrow.places, narrow.queue, narrow.run_s) == (2, 3, 0.5)
    joined = Bounds.of(Serving(0, batch_rows=8), configured)
    assert (joined.places, joined.queue) == (4, 4)


def test_a_run_ends_after_its_models_time(gate: Gate) -> None:
    gate.open.set()
    model = scheduled(gate, run_ms=100)
    begun = time.monotonic()
    with pytest.raises(CasemateError) as refused:
        model.run({"x": rows(ENDLESS)}, ["y"], begun + 600)
    assert refused.value.code is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 100


def test_rows_of_a_request_are_bounded_and_the_same_in_every_input(gate: Gate) -> None:
    gate.open.set()
    model = scheduled(gate, request_rows=2)
    for inputs in ({"x": rows(1, 2, 3)}, {"x": rows(1, 2), "z": rows(1)}):
        with pytest.raises(CasemateError) as refused:
            model.run(inputs, ["y"], time.monotonic() + 60)
        assert refused.value.code is Code.INVALID_INPUT
    assert gate.runs == []


def test_no_request_is_lost_or_answered_with_anothers_rows(
    gate: Gate, pool: ThreadPoolExecutor
) -> None:
    """A storm: poisoned, late and good requests of many sizes at once."""
    gate.open.set()
    model = scheduled(gate, concurrency=2, batch_rows=16)

    def ask_once(number: int) -> str:
        value = POISON if number % 29 == 0 else float(number)
        x = rows(*[value] * (number % 5))
        within = 0.0001 if number % 17 == 0 else 60.0
        try:
            answer = model.run({"x": x}, ["y"], time.monotonic() + within)
        except RequestError as error:
            return str(error.code)
        assert answer["y"].tolist() == (x * 2).tolist()
        return "OK"

    def ask(number: int) -> str:
        """Ask again when refused, as a client does: a full queue is the machine's affair."""
        for _ in range(1000):
            outcome = ask_once(number)
            if outcome != "OVERLOADED":
                return outcome
            time.sleep(0.001)
        return "OVERLOADED"

    outcomes = dict(enumerate(pool.map(ask, range(1, 3000)), 1))
    in_time = {number: outcome for number, outcome in outcomes.items() if number % 17}
    poisoned = {number for number in outcomes if number % 29 == 0 and number % 5}
    assert {in_time[number] for number in in_time.keys() & poisoned} == {"MODEL_FAILED"}
    assert {in_time[number] for number in in_time.keys() - poisoned} == {"OK"}
    late = {outcomes[number] for number in outcomes.keys() - in_time.keys()}
    assert late <= {"OK", "MODEL_FAILED", "DEADLINE_EXCEEDED"}
    assert model._places.free == 2
    assert not model._places.queue
    assert gate.most <= 2
