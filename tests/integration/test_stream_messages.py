"""Several messages in one unit of a stream, spoken by hand to a whole enclave (SPEC 5.9.8)."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from casemate import cbor, limits
from casemate.envelope import questions
from casemate.envelope.sealed_chunks import parse_chunks
from casemate.errors import Code, SealedStatusError
from casemate.frames import FrameType
from casemate.sealed_model import Serving
from casemate.tensors import TensorSpec, from_response, to_request
from tests.support import onnx_bytes
from tests.support.attacker import refusal
from tests.support.enclave_bench import Bench
from tests.support.streams import Spoken, speak

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.envelope.sealing import DataKeySession
    from casemate.envelope.streaming import AnswerUnit

pytestmark = pytest.mark.integration

WIDTH = 8
TABLE = [10.0, 20.0, 30.0]
POISON = 1000  # an index that the table does not have: the run fails, whoever's rows are in it
JOINED: dict[str, Any] = {
    "files": {"model.onnx": onnx_bytes.guarded_mlp(WIDTH, 1)},
    "inputs": (TensorSpec("x", "FP32", (0, WIDTH)), TensorSpec("index", "INT64", (0,))),
    "outputs": (TensorSpec("y", "FP32", (0, WIDTH)), TensorSpec("picked", "FP32", (0,))),
    "serving": Serving(0, batch_rows=24),
    "answer_bucket": 1024,
}
REPEATED: dict[str, Any] = {
    "files": {"model.onnx": onnx_bytes.repeating("k")},  # of several rows its runs fail
    "inputs": (TensorSpec("x", "FP32", (0,)), TensorSpec("n", "INT64", (0,))),
    "outputs": (TensorSpec("y", "FP32", (0,)),),
    "serving": Serving(0, batch_rows=8),
}


class Served(NamedTuple):
    bench: Bench
    session: DataKeySession


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Bench() as bench:
        bench.serve()
        session = bench.session()  # its policy knows of this model alone
        bench.serve(name="picking", **JOINED)
        bench.serve(name="times", **REPEATED)
        yield Served(bench, session)


@contextmanager
def spoken_to(served: Served, model: str, **changed: Any) -> Iterator[Spoken]:  # noqa: ANN401 - speak's
    with served.bench.connect() as channel:
        channel.settimeout(60)
        yield speak(channel, served.session, model=model, **changed).begin()


@pytest.fixture
def spoken(served: Served) -> Iterator[Spoken]:
    with spoken_to(served, "picking") as spoken:
        yield spoken


def picking(*index: int) -> dict[str, np.ndarray]:
    x = np.ones((len(index), WIDTH), np.float32)
    return {"x": x, "index": np.array(index, np.int64)}


def message(*index: int) -> bytes:
    return to_request(picking(*index), ["picked"])


def picked(part: memoryview) -> list[float] | Code:
    try:
        numbers: list[float] = from_response(questions.read(part))["picked"].tolist()
    except SealedStatusError as error:
        return error.code
    return numbers


def became(unit: AnswerUnit) -> list[list[float] | Code]:
    assert unit.trailer.status is Code.OK, unit.trailer.detail
    assert unit.trailer.final
    return [*map(picked, unit.messages)]


def test_messages_are_numbered_through_all_units(spoken: Spoken) -> None:
    spoken.ask(message(0))
    spoken.ask(message(1), message(2, 0), message(0))
    spoken.ask(*[message(at % 3) for at in range(24)])
    spoken.ask(message(2))
    spoken.end()
    *answers, last = sorted(spoken.receive_all(), key=lambda unit: (unit.last, unit.trailer.unit))
    assert [unit.trailer.unit for unit in answers] == [0, 1, 4, 28]
    assert [len(unit.messages) for unit in answers] == [1, 3, 24, 1]
    assert became(answers[1]) == [[20.0], [30.0, 10.0], [10.0]]
    assert became(answers[2]) == [[TABLE[at % 3]] for at in range(24)]
    assert (last.trailer.status, last.trailer.unit) == (Code.OK, 29)
    assert {unit.trailer.questions for unit in answers} == {24}


def test_a_unit_whose_joined_run_fails_is_answered_one_by_one(spoken: Spoken) -> None:
    """Alike, so that they are read as one; and not alike."""
    spoken.ask(*[message(at) for at in (0, 1, POISON, 2)])
    spoken.ask(message(0), b"no message", message(POISON), message(1, 1), to_request(picking(2)))
    spoken.end()
    first, second, _ = sorted(spoken.receive_all(), key=lambda u: (u.last, u.trailer.unit))
    assert became(first) == [[10.0], [20.0], Code.MODEL_FAILED, [30.0]]
    assert became(second) == [
        *([10.0], Code.INVALID_REQUEST, Code.MODEL_FAILED, [20.0, 20.0], [30.0])
    ]


def test_more_rows_than_run_together_are_several_runs(spoken: Spoken) -> None:
    spoken.ask(*[message(*[at % 3] * 20) for at in range(5)])
    spoken.ask(*[message(*[at % 3] * (18 + at)) for at in range(5)])
    spoken.end()
    first, second, _ = sorted(spoken.receive_all(), key=lambda u: (u.last, u.trailer.unit))
    assert became(first) == [[TABLE[at % 3]] * 20 for at in range(5)]
    assert became(second) == [[TABLE[at % 3]] * (18 + at) for at in range(5)]


def test_more_than_may_be_unanswered_are_answered_all_the_same(spoken: Spoken) -> None:
    chunks: list[Any] = []
    for _ in range(20):
        chunks += spoken.call.question(*[[message(at % 3)] for at in range(24)])
    assert limits.STREAM_UNITS_MAX < 20 * 24
    spoken.send(chunks)
    spoken.end()
    *answers, last = spoken.receive_all()
    assert len(answers) == 20
    assert all(became(unit) == [[TABLE[at % 3]] for at in range(24)] for unit in answers)
    assert (last.trailer.status, last.trailer.unit) == (Code.OK, 480)


@pytest.mark.parametrize(
    ("model", "count", "changed"),
    [("picking", 25, {}), ("picking", 2, {"receipt": True}), ("linear", 2, {})],
    ids=["more than the model takes", "with receipts", "of a model that joins nothing"],
)
def test_more_than_may_be_asked_together_end_the_stream(
    served: Served, model: str, count: int, changed: dict[str, Any]
) -> None:
    """What was asked before is answered."""
    one = message(1) if model == "picking" else to_request({"x": np.ones((1, 3), np.float32)})
    with spoken_to(served, model, **changed) as spoken:
        spoken.ask(one)
        spoken.ask(one)
        spoken.ask(*[one] * count)
        spoken.ask(one)
        spoken.end()
        *answers, last = spoken.receive_all()
    assert sorted(unit.trailer.unit for unit in answers) == [0, 1]
    assert [from_response(unit.messages[0]) != {} for unit in answers] == [True] * 2
    assert (last.trailer.status, last.trailer.unit) == (Code.INVALID_REQUEST, 2)
    assert last.last


def test_a_refusal_of_the_whole_counts_for_each_of_a_unit(served: Served) -> None:
    bench = served.bench
    bench.serve(name="gone", **JOINED)
    with spoken_to(served, "gone") as spoken:
        spoken.ask(message(0), message(1))
        while not spoken.units:
            assert spoken.receive()
        bench.ask(FrameType.UNLOAD, cbor.encode({"name": "gone", "version": 2}))
        spoken.ask(message(0), message(1), message(2))
        spoken.ask(message(0))
        spoken.end()
        first, *others, last = spoken.receive_all()
    assert became(first) == [[10.0], [20.0]]
    assert [(unit.trailer.unit, unit.trailer.status, unit.messages) for unit in others] == [
        (number, Code.UNKNOWN_MODEL, []) for number in (2, 5)
    ]
    assert (last.trailer.status, last.trailer.unit) == (Code.OK, 6)


def test_a_deadline_ends_the_runs_of_a_unit(served: Served) -> None:
    endless = to_request({"x": np.zeros(1, np.float32), "n": np.array([1 << 62], np.int64)})
    begun = time.monotonic()
    with spoken_to(served, "times", budget=1500) as spoken:
        spoken.ask(*[endless] * 3)
        units = spoken.receive_all()
    assert 1 < time.monotonic() - begun < 20
    assert units[-1].trailer.status is Code.DEADLINE_EXCEEDED
    assert spoken.complete


def test_answers_to_as_many_messages_have_one_length(served: Served) -> None:
    """Whatever became of which, and of the whole."""
    served.bench.serve(name="left", **JOINED)
    with spoken_to(served, "left") as spoken:
        for one in (to_request(picking(1)), to_request(picking(POISON)), b"no message"):
            spoken.ask(*[one] * 24)
        while len(spoken.units) < 3:
            assert spoken.receive()
        served.bench.ask(FrameType.UNLOAD, cbor.encode({"name": "left", "version": 2}))
        spoken.ask(*[message(0)] * 24)
        spoken.end()
        units = spoken.receive_all()
    assert [len(unit.messages) for unit in units] == [24, 24, 24, 0, 0]
    sizes = []
    for at, frame in enumerate(spoken.frames):
        _, chunks = parse_chunks(frame, first=not at)
        sizes += [len(chunk) for chunk in chunks]
    assert len(sizes) == 5
    assert len(set(sizes[:4])) == 1


def test_parts_above_the_bound_break_the_stream(spoken: Spoken) -> None:
    spoken.ask(message(1))
    one = message(0)
    part = len(one).to_bytes(4, "big") + one
    spoken.send(spoken.call._writer.seal([part] * 33, 8192))
    assert refusal(spoken.receive_all) is Code.OPEN_FAILED
    assert not spoken.complete
