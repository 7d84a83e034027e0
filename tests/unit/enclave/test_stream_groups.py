"""Questions of a stream at once: whatever their model takes on, each is answered (SPEC 8.8.1.1)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from casemate.envelope.messages import Trailer
from casemate.errors import Code, RequestError
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.runs import Left, Run
from casemate_enclave.shares import Owner
from casemate_enclave.stream_answers import Answered, Asked, StreamQuestion
from casemate_enclave.stream_groups import answer_together
from casemate_enclave.stream_places import StreamPlaces

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from casemate_enclave.runs import Asker, Outcome
    from casemate_enclave.stream_groups import Back

ME = Owner(b"me", listed=False)
SOON = 10.0


class Model:
    """Begins nothing at once; of what it is offered it takes on ``most`` at a time."""

    quick = False

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self.offered: list[int] = []
        self.alone: list[tuple[int, bool]] = []
        self.outcomes: dict[int, Outcome] = {}
        self.threads: list[threading.Thread] = []
        self.gate = threading.Event()
        self.gate.set()

    def begin(self, _runs: Sequence[Run]) -> None:
        """Nothing."""

    def offer(self, runs: Sequence[tuple[Run, object]], asker: Asker) -> set[object]:
        taken = list(runs[: self.most])
        self.offered.append(len(taken))
        thread = threading.Thread(target=self._work, args=(taken, asker))
        self.threads.append(thread)
        thread.start()
        return {ticket for _, ticket in taken}

    def _work(self, taken: Sequence[tuple[Run, object]], asker: Asker) -> None:
        assert self.gate.wait(SOON)
        for run, ticket in reversed(taken):
            value = int(run.inputs["x"])
            asker.settle(ticket, self.outcomes.get(value, {"y": value}))
        asker.settled()

    def run(
        self,
        inputs: Any,  # noqa: ANN401 - arrays by name
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None = None,
        *,
        repeated: bool = False,
        meanwhile: Callable[[], None] | None = None,
    ) -> Any:  # noqa: ANN401 - likewise
        assert (outputs, cancellation, meanwhile) != ((), None, None)
        assert deadline > time.monotonic()
        self.alone.append((inputs["x"], repeated))
        return {"y": inputs["x"]}


class Answering:
    """Answers a question with its own number."""

    def __init__(self, model: Model, places: StreamPlaces, runs: int = 1) -> None:
        self._model = places.waiting(model, ME)
        self._runs = runs

    def ask(self, question: StreamQuestion, deadline: float, cancellation: Cancellation) -> Asked:
        inputs: Any = {"x": question.unit}
        run = Run(self._model, inputs, ["y"], deadline, cancellation)
        steps = self._steps(question, run)
        return Asked(question, steps, next(steps), 0)

    def answer(self, back: Sequence[tuple[Asked, Outcome]]) -> tuple[Back, list[Asked]]:
        after = [(asked.question, asked.after(asked.outputs(outcome))) for asked, outcome in back]
        return (
            [(question, it) for question, it in after if isinstance(it, Answered)],
            [it for _, it in after if isinstance(it, Asked)],
        )

    def _steps(self, question: StreamQuestion, run: Run) -> Generator[Run, Any, Answered]:
        try:
            for _ in range(self._runs - 1):
                yield run
            outputs = yield run
        except RequestError as error:
            return Answered((), Trailer(error.code, unit=question.unit))
        return Answered([[b"%d" % outputs["y"]]], Trailer(Code.OK, unit=question.unit))


def begin(model: Model, places: StreamPlaces, count: int, runs: int = 1) -> Generator[Any]:
    questions = [StreamQuestion(unit, [memoryview(b"m")], 1) for unit in range(count)]
    answering: Any = Answering(model, places, runs)
    return answer_together(answering, questions, time.monotonic() + SOON, Cancellation())


def answers(
    model: Model, places: StreamPlaces, count: int, runs: int = 1
) -> dict[int, bytes | Code]:
    found: dict[int, bytes | Code] = {}
    for back in begin(model, places, count, runs):
        for question, answered in back:
            assert question.unit == answered.trailer.unit
            assert question.unit not in found
            good = answered.trailer.status is Code.OK
            found[question.unit] = (
                bytes(answered.messages[0][0]) if good else answered.trailer.status
            )
    for thread in model.threads:
        thread.join(SOON)
    return found


def free(places: StreamPlaces) -> bool:
    return places._shares.used == 0


@pytest.mark.parametrize("most", [0, 1, 5, 15, 16])
def test_each_is_answered_however_many_the_model_takes_on_at_a_time(most: int) -> None:
    model, places = Model(most), StreamPlaces()
    assert answers(model, places, 16) == {unit: b"%d" % unit for unit in range(16)}
    assert free(places)
    together = sum(model.offered)
    assert together + len(model.alone) == 16
    assert together >= min(most, 1) * 15


@pytest.mark.parametrize("most", [0, 3, 16])
def test_what_needs_another_run_waits_for_it_as_for_the_first(most: int) -> None:
    model, places = Model(most), StreamPlaces()
    assert answers(model, places, 8, runs=3) == {unit: b"%d" % unit for unit in range(8)}
    assert sum(model.offered) + len(model.alone) == 24
    assert free(places)


def test_what_cannot_be_joined_after_all_runs_by_itself_and_what_was_lost_is_repeated() -> None:
    model, places = Model(), StreamPlaces()
    model.outcomes = {
        3: Left.ALONE,
        4: Left.LOST,
        5: RequestError(Code.DEADLINE_EXCEEDED, "late"),
    }
    found = answers(model, places, 8)
    assert found == {
        **{unit: b"%d" % unit for unit in range(8)},
        5: Code.DEADLINE_EXCEEDED,
    }
    assert sorted(model.alone) == [(3, False), (4, True)]
    assert free(places)


class OnePlace(Model):
    """Begins all at once in its one place, which they hold until all are back, in order."""

    def __init__(self) -> None:
        Model.__init__(self, most=0)
        self.place = threading.Lock()

    def begin(self, runs: Sequence[Run]) -> Any:  # noqa: ANN401
        assert self.place.acquire(blocking=False)
        return UnderWay(self, [int(run.inputs["x"]) for run in runs])

    def run(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        assert self.place.acquire(timeout=SOON), "who waits for a place holds it"
        try:
            return Model.run(self, *arguments, **options)
        finally:
            self.place.release()


class UnderWay:
    """What ``OnePlace`` has begun; a ``Together``."""

    def __init__(self, model: OnePlace, values: Sequence[int]) -> None:
        self.members = range(len(values))
        self._model = model
        self._left = list(enumerate(values))

    @property
    def done(self) -> bool:
        return not self._left

    def receive(self, _patience_s: float) -> list[tuple[int, Outcome]]:
        at, value = self._left.pop(0)
        if self.done:
            self._model.place.release()
        return [(at, self._model.outcomes.get(value, {"y": value}))]

    def hurry(self) -> float:
        raise AssertionError("nothing takes long")


@pytest.mark.parametrize("left", [Left.ALONE, Left.LOST])
def test_what_is_to_run_alone_waits_until_the_others_have_given_up_their_place(left: Left) -> None:
    """Else whoever begins runs together in all places of a model waits for one for ever."""
    model, places = OnePlace(), StreamPlaces(2)
    model.outcomes = {0: left, 2: left}
    assert answers(model, places, 4) == {unit: b"%d" % unit for unit in range(4)}
    assert model.alone == [(0, left is Left.LOST), (2, left is Left.LOST)]
    assert free(places)


def test_it_says_so_before_what_is_to_run_alone() -> None:
    model, places = OnePlace(), StreamPlaces(2)
    model.outcomes = {0: Left.ALONE}
    found = [len(back) for back in begin(model, places, 2)]
    assert found == [1, 0, 1]


def test_streams_leave_no_more_to_a_model_than_they_have_places() -> None:
    model, places = Model(), StreamPlaces(4)
    assert len(answers(model, places, 16)) == 16
    assert max(model.offered) <= 4
    assert free(places)


def test_it_says_so_before_it_waits_and_ends_when_all_are_back() -> None:
    """So the thread that reads a stream waits for nothing, and no run outlives its stream."""
    model, places = Model(), StreamPlaces()
    model.gate.clear()
    under_way = begin(model, places, 8)
    assert next(under_way) == []
    assert not model.offered
    taker = threading.Thread(target=next, args=(under_way,))
    taker.start()
    taker.join(0.1)
    assert taker.is_alive()
    model.gate.set()
    taker.join(SOON)
    under_way.close()
    for thread in model.threads:
        thread.join(SOON)
    assert free(places)
