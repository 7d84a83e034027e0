"""Questions that arrive together, answered by real workers (THREATS C2, C5, SPEC 8.8.1.1, 9.2.1).

Nothing here is sealed: what is asked is whose run gives what, and when. A question says which model
it is for, and every answer shows from which question it is.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate import limits, numbered
from casemate.attestation.structures import ServiceLimits
from casemate.errors import CasemateError, Code
from casemate.frames import ANSWER, FrameType
from casemate.sealed_model import ModelContents, Serving
from casemate_enclave.context import Unsent
from casemate_enclave.crew import Crew
from casemate_enclave.events import Counter, Journal
from casemate_enclave.runs import Run
from casemate_enclave.scheduling import Bounds, ScheduledModel
from casemate_enclave.turns import TurnConnection
from tests.support import onnx_bytes as onnx
from tests.support import workers
from tests.support.attacker import eventually
from tests.support.workers import header, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_enclave.context import RequestContext
    from casemate_enclave.runs import Steps

pytestmark = pytest.mark.integration

REPEATING = header({"x": ("FP32", (0,)), "n": ("INT64", (1,))}, {"y": ("FP32", (0,))})
QUOTIENT = header({"x": ("INT32", (0,)), "d": ("INT32", (0,))}, {"y": ("INT32", (0,))})
LINEAR = header({"x": ("FP32", (0, 3))}, {"y": ("FP32", (0, 2))})
PASSING = header({"x": ("FP32", (0, 1024))}, {"y": ("FP32", (0, 1024))})
FOREVER = 1 << 62


class Models:
    """Models as an enclave schedules them: two join runs, and one of these is not quick."""

    def __init__(self) -> None:
        self.journal = Journal(io.StringIO())
        self.meanwhile: list[int] = []  # values of questions whose time was used
        runtime = workers.runtime(self.journal)
        before = processes()
        self.repeating = self._scheduled(runtime, onnx.repeating(), REPEATING)
        (self.worker,) = processes() - before
        self.dividing = self._scheduled(runtime, onnx.dividing(), QUOTIENT)
        self.joined = self._scheduled(
            runtime, onnx.linear(), LINEAR, batch_dimension=0, batch_rows=64
        )
        before = processes()
        self.wide = self._scheduled(
            runtime, onnx.passing(1024, 12), PASSING, batch_dimension=0, batch_rows=32
        )
        (self.wide_worker,) = processes() - before

    @property
    def all(self) -> tuple[ScheduledModel, ...]:
        return self.repeating, self.dividing, self.joined, self.wide

    def _scheduled(self, runtime: Any, content: bytes, facts: Any, **serving: Any) -> Any:  # noqa: ANN401
        model = runtime.load(ModelContents.of({"m": content}), facts)
        bounds = Bounds.of(Serving(**{"concurrency": 4, **serving}), ServiceLimits(1, 1, 1, 1))
        return ScheduledModel(model, bounds, contextlib.nullcontext)

    def inputs(self, kind: str, value: int) -> tuple[ScheduledModel, dict[str, Any]]:
        """What a question of this kind has its model run on."""
        if kind == "joined":
            return self.joined, {"x": np.array([[value, 0, 0]], np.float32)}
        if kind == "wide":
            return self.wide, {"x": np.full((1 + value % 2, 1024), value, np.float32)}
        if kind in {"divided", "crash"}:
            pair = (value, 1) if kind == "divided" else (-(2**31), -1)
            return self.dividing, dict(zip("xd", np.array(pair, np.int32)[:, None], strict=True))
        times = {"endless": FOREVER, "long": 20_000}.get(kind, 1)
        size = 30_000 if kind == "large" else 1
        x = np.zeros((1, 1) if kind == "bad" else size, np.float32)
        return self.repeating, {"x": x + value, "n": np.array([times])}

    def steps(
        self, kind: int, payload: memoryview, deadline: float, context: RequestContext
    ) -> Steps[tuple[int, tuple[bytes, ...]]]:
        """Answer ``{"kind", "value"}`` with the first element and their number, or a code."""
        asked = json.loads(bytes(payload))
        model, inputs = self.inputs(asked["kind"], asked["value"])
        context.owner = b"%d" % (asked["value"] % 3)
        try:
            meanwhile = partial(self.meanwhile.append, asked["value"])
            outputs = yield Run(model, inputs, ["y"], deadline, context, meanwhile)
        except CasemateError as error:
            return kind | ANSWER, (error.code.value.encode(),)
        y = outputs["y"].reshape(-1)
        return kind | ANSWER, (json.dumps([float(y[0]), float(len(y))]).encode(),)

    def expected(self, kind: str, value: int) -> bytes:
        """The one right answer."""
        if kind in {"bad", "crash"}:
            return Code.MODEL_FAILED.value.encode()
        if kind == "endless":
            return Code.DEADLINE_EXCEEDED.value.encode()
        rows = {
            "wide": [value, 1024 * (1 + value % 2)],
            "joined": [value, 2],
            "divided": [value, 1],
            "large": [value + 1, 30_000],
        }
        added = 20_000 if kind == "long" else 1
        return json.dumps(list(map(float, rows.get(kind, [value + added, 1])))).encode()

    def settle(self) -> None:
        """Run each until it is known to be quick."""
        for kind in ("quick", "divided", "joined"):
            model, inputs = self.inputs(kind, 1)

            def quick(model: ScheduledModel = model, inputs: Any = inputs) -> bool:  # noqa: ANN401
                model.run(inputs, ["y"], time.monotonic() + 60)
                return model._model.quick

            assert eventually(quick)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


class Host:
    """The host's end of one connection."""

    def __init__(self, models: Models) -> None:
        self.near, self._far = socket.socketpair()
        self.near.settimeout(60)
        self._connection = TurnConnection(
            *(self._far, models.steps, Crew()), finishing=lambda: False, unsent=Unsent()
        )
        self._answers = numbered.FrameBuffer(FrameType.NUMBERED | ANSWER, limits.FRAME_MAX)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._models = models

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.receive(1) == {0: self._models.expected("quick", 1)}
        return self

    def _serve(self) -> None:
        first = numbered.Numbered(0, FrameType.REQUEST, _payload("quick", 1), 100_000)
        with self._far:
            self._connection.serve(first)

    def send(self, questions: list[tuple[str, int]], budget: int = 100_000) -> None:
        """Ask all at once; a question's number is its place, counted from 1."""
        frames = [
            numbered.question(number, FrameType.REQUEST, _payload(*question), budget)
            for number, question in enumerate(questions, 1)
        ]
        self.near.sendall(b"".join(piece for frame in frames for piece in frame))

    def cancel(self, *numbers: int) -> None:
        self.near.sendall(b"".join(b"".join(numbered.cancel(number)) for number in numbers))

    def receive(self, count: int) -> dict[int, bytes]:
        """The next answers; none may come twice."""
        answers: dict[int, bytes] = {}
        while len(answers) < count:
            while (frame := self._answers.take()) is None:
                data = self.near.recv(1 << 16)
                assert data
                self._answers.add(data)
            assert frame.number not in answers
            answers[frame.number] = frame.payload
        return answers

    def ask(self, questions: list[tuple[str, int]]) -> dict[int, bytes]:
        self.send(questions)
        return self.receive(len(questions))

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self._thread.join(60)
        assert not self._thread.is_alive()
        for model in self._models.all:
            assert eventually(partial(_all_free, model))  # each place was given back


def _all_free(model: ScheduledModel) -> bool:
    return model._places.free == 4


def _payload(kind: str, value: int) -> bytes:
    return json.dumps({"kind": kind, "value": value}).encode()


@pytest.fixture
def host(models: Models) -> Iterator[Host]:
    models.settle()
    with Host(models) as made:
        yield made


def right(models: Models, questions: list[tuple[str, int]]) -> dict[int, bytes]:
    return {number: models.expected(*question) for number, question in enumerate(questions, 1)}


class Counted:
    """Counts the packets that a model's worker is sent."""

    def __init__(self, model: ScheduledModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        worked: Any = model._model
        begin = worked.begin

        def counting(runs: list[Run], **how: Any) -> Any:  # noqa: ANN401
            self.sizes.append(len(runs))
            return begin(runs, **how)

        monkeypatch.setattr(worked, "begin", counting)


def test_questions_that_arrive_together_share_a_packet_and_each_gets_its_own_answer(
    models: Models, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(models.repeating, monkeypatch)
    questions = [("quick", value) for value in range(20)]

    def shared() -> bool:
        """Ask; whether they went together, which runs that a slow machine made long do not."""
        assert host.ask(questions) == right(models, questions)
        return max(counted.sizes, default=0) > 5

    assert eventually(shared)


def test_the_time_of_a_run_that_was_begun_is_used_once(models: Models, host: Host) -> None:
    questions = [(kind, value) for value, kind in enumerate(["quick", "joined", "bad"] * 3)]

    def used() -> bool:
        """Whether begun with others, or alone after all."""
        models.meanwhile.clear()
        assert host.ask(questions) == right(models, questions)
        assert len(models.meanwhile) == len(set(models.meanwhile))
        return len(models.meanwhile) > 3

    assert eventually(used)


def test_rows_of_a_model_that_joins_run_once(
    models: Models, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(models.joined, monkeypatch)
    questions = [("joined", value) for value in range(20)]

    def joined() -> bool:
        """As above; no packet has more than one run, of which some are of several questions."""
        counted.sizes.clear()
        assert host.ask(questions) == right(models, questions)
        assert set(counted.sizes) <= {1}
        return 0 < len(counted.sizes) < 15

    assert eventually(joined)


def test_longer_runs_of_a_model_that_joins_take_no_thread_for_each_question(
    models: Models, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their inputs together are larger than a packet."""
    counted = Counted(models.wide, monkeypatch)
    threads: list[int] = []
    begin = models.wide._model.begin

    def watched(runs: list[Run], **how: Any) -> Any:  # noqa: ANN401
        threads.append(threading.active_count())
        return begin(runs, **how)

    monkeypatch.setattr(models.wide._model, "begin", watched)
    host.ask([("wide", 1)])
    questions = [("wide", value) for value in range(30)]

    def joined() -> bool:
        """As above, by at most some threads more than there were."""
        counted.sizes.clear()
        threads.clear()
        before = threading.active_count()
        assert host.ask(questions) == right(models, questions)
        assert set(counted.sizes) <= {1}
        return 0 < len(counted.sizes) < 15 and max(threads) <= before + 4

    assert eventually(joined)


def test_c5_a_worker_killed_during_a_joined_run_loses_no_question(models: Models) -> None:
    own = Models()
    dice = random.Random(1)
    questions = [("wide", value) for value in range(30)]
    with Host(own) as host:
        host.send(questions)
        time.sleep(dice.random() / 100)
        os.kill(own.wide_worker, signal.SIGKILL)
        assert host.receive(30) == right(own, questions)
        assert host.ask(questions) == right(own, questions)
        assert eventually(lambda: own.journal.counters()[Counter.WORKERS_ENDED] == 1)


KINDS = ["quick", "divided", "joined", "wide", "bad", "long", "large"]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    questions=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 1000)), min_size=1, max_size=48
    )
)
def test_c2_whatever_is_asked_together_each_question_has_its_one_answer(
    models: Models, questions: list[tuple[str, int]]
) -> None:
    with Host(models) as host:
        assert host.ask(questions) == right(models, questions)


def test_c5_nobody_waits_for_an_endless_one(models: Models, host: Host) -> None:
    """Not those behind it in its packet either; given up, it ends."""
    for place in (0, 3, 19):
        models.settle()
        questions = [("quick", value) for value in range(20)]
        questions[place] = "endless", 0
        host.send(questions)
        expected = right(models, questions)
        ended = {place + 1: expected.pop(place + 1)}
        begun = time.monotonic()
        assert host.receive(19) == expected
        assert time.monotonic() - begun < 60
        host.cancel(place + 1)
        assert host.receive(1) == ended


def test_c5_as_many_endless_ones_as_there_are_places_end_at_their_deadline(
    models: Models, host: Host
) -> None:
    """Then the others are answered, or refused where their own deadline passed meanwhile."""
    questions = [("endless", 0)] * 6 + [("quick", value) for value in range(6)]
    begun = time.monotonic()
    host.send(questions, budget=700)
    answers = host.receive(12)
    assert time.monotonic() - begun < 0.7 + limits.WORKER_GRACE_S + 50
    expected = right(models, questions)
    late = Code.DEADLINE_EXCEEDED.value.encode()
    assert all(answers[number] in {expected[number], late} for number in range(1, 13))
    assert [answers[number] for number in range(1, 7)] == [late] * 6
    assert host.ask([("quick", 7)]) == {1: models.expected("quick", 7)}


def test_c5_one_that_crashes_its_worker_fails_alone(models: Models, host: Host) -> None:
    before = models.journal.counters()[Counter.WORKERS_ENDED]
    questions = [("divided", value) for value in range(20)]
    questions[4] = "crash", 0
    assert host.ask(questions) == right(models, questions)
    assert models.journal.counters()[Counter.WORKERS_ENDED] == before + 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_c5_a_worker_killed_under_way_loses_no_question(
    models: Models, number: signal.Signals
) -> None:
    own = Models()
    own.settle()
    dice = random.Random(number)
    with Host(own) as host:
        for _ in range(2):
            questions = [("long" if n % 5 == 2 else "quick", n) for n in range(30)]
            host.send(questions)
            time.sleep(dice.random() / 100)
            with contextlib.suppress(ProcessLookupError):
                os.kill(own.worker, number)
            assert host.receive(30) == right(own, questions)
        assert own.journal.counters()[Counter.WORKERS_ENDED] == 1


def test_what_is_given_up_ends_and_the_rest_is_answered(models: Models, host: Host) -> None:
    questions = [("endless" if n % 3 == 1 else "quick", n) for n in range(12)]
    host.send(questions)
    given_up = [n + 1 for n in range(12) if n % 3 == 1]
    host.cancel(*given_up)
    begun = time.monotonic()
    answers = host.receive(12)
    assert time.monotonic() - begun < 60
    late = Code.DEADLINE_EXCEEDED.value.encode()
    for number, answer in right(models, questions).items():
        assert answers[number] == answer or (number in given_up and late in answers[number])


def test_with_the_connection_ends_what_was_under_way_and_its_places_are_free(
    models: Models,
) -> None:
    models.settle()
    with Host(models) as host:
        host.send([("endless", n) for n in range(3)] + [("quick", n) for n in range(3)])
        host.receive(3)
    assert eventually(lambda: models.repeating._places.free == 4)
