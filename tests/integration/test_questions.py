"""Several questions in one request, answered by a whole enclave (SPEC 5.10)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from casemate import limits
from casemate.envelope import questions
from casemate.errors import Code, SealedStatusError
from casemate.frames import FrameType
from casemate.oip.v2 import inference_pb2 as pb
from casemate.sealed_model import Serving
from casemate.tensors import TensorSpec, from_response, to_request
from casemate_enclave.questions import most_questions
from tests.support import onnx_bytes
from tests.support.enclave_bench import ROWS, Bench

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casemate.envelope.sealing import DataKeySession, OpenedAnswer
    from casemate.sealed_model import ModelHeader

pytestmark = pytest.mark.integration

WIDTH = 8
TABLE = [10.0, 20.0, 30.0]
JOINED: dict[str, Any] = {
    "files": {"model.onnx": onnx_bytes.guarded_mlp(WIDTH, 1)},
    "inputs": (TensorSpec("x", "FP32", (0, WIDTH)), TensorSpec("index", "INT64", (0,))),
    "outputs": (TensorSpec("y", "FP32", (0, WIDTH)), TensorSpec("picked", "FP32", (0,))),
    "serving": Serving(0, batch_rows=64),
    "answer_bucket": 1024,
}
BAD = 1000  # an index that the table does not have makes a whole run fail


class Served(NamedTuple):
    bench: Bench
    session: DataKeySession


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Bench() as bench:
        bench.serve()
        session = bench.session()  # its policy knows of this model alone
        bench.serve(name="picking", **JOINED)
        bench.serve(name="narrow", **{**JOINED, "serving": Serving(0, 64, request_rows=3)})
        yield Served(bench, session)


def picking(*index: int) -> bytes:
    x = np.ones((len(index), WIDTH), np.float32)
    return to_request({"x": x, "index": np.array(index, np.int64)}, ["picked"])


def ask(
    served: Served,
    messages: Sequence[bytes],
    model: str = "picking",
    **changed: object,
) -> OpenedAnswer:
    first, *others = messages
    call = served.session.seal(
        model=model,
        version=None,
        digest=None,
        message=first,
        others=[[other] for other in others],
        **changed,  # type: ignore[arg-type]
    )
    return served.bench.send(call)


def picked(part: memoryview) -> list[float] | Code:
    try:
        numbers: list[float] = from_response(questions.read(part))["picked"].tolist()
    except SealedStatusError as error:
        return error.code
    return numbers


def became(answer: OpenedAnswer) -> list[list[float] | Code]:
    assert answer.trailer.status is Code.OK, answer.trailer
    return [*map(picked, answer.messages)]


def test_each_question_gets_its_own_answer_in_its_place(served: Served) -> None:
    asked = [[at % 3] * (1 + at % 2) for at in range(32)]
    answer = ask(served, [picking(*index) for index in asked])
    assert became(answer) == [[TABLE[at] for at in index] for index in asked]
    assert answer.trailer.questions == 32
    assert answer.trailer.model == "picking"


def test_what_is_wrong_with_one_is_no_others(served: Served) -> None:
    """A message that is none, one of another shape, and one that makes the joined run fail."""
    good, elsewhere = picking(1), to_request({"x": np.ones((1, WIDTH), np.float32)})
    answer = ask(served, [good, b"no message", picking(BAD), elsewhere, picking(2, 0)])
    assert became(answer) == [
        *([20.0], Code.INVALID_REQUEST, Code.MODEL_FAILED, Code.INVALID_INPUT),
        [30.0, 10.0],
    ]


def test_messages_that_cannot_be_joined_run_one_after_the_other(served: Served) -> None:
    """Other outputs are wanted, and a message without rows has nothing to be told apart by."""
    all_outputs = to_request(
        {"x": np.ones((1, WIDTH), np.float32), "index": np.array([2], np.int64)}
    )
    answer = ask(served, [picking(0), all_outputs, picking(), picking(1)])
    assert became(answer) == [[10.0], [30.0], [], [20.0]]


def test_a_run_together_has_no_more_rows_than_one_request_may(served: Served) -> None:
    assert ask(served, [picking(0)], "narrow").trailer.questions == 3
    single = ask(served, [picking(1), picking(2), picking(0)], "narrow")
    assert became(single) == [[20.0], [30.0], [10.0]]
    more = ask(served, [picking(1, 2, 0), picking(2), picking(1, 1, 1, 1)], "narrow")
    assert became(more) == [[20.0, 30.0, 10.0], [30.0], Code.INVALID_INPUT]


def test_a_time_out_of_one_is_not_the_others(served: Served) -> None:
    short = with_timeout(picking(1), 1)
    answer = became(ask(served, [picking(0), short, picking(2)]))
    assert answer in ([[10.0], Code.DEADLINE_EXCEEDED, [30.0]], [[10.0], [20.0], [30.0]])


def with_timeout(message: bytes, microseconds: int) -> bytes:
    parsed = pb.ModelInferRequest.FromString(message)
    parsed.parameters["timeout"].int64_param = microseconds
    return parsed.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("model", "count", "changed"),
    [
        ("linear", 2, {}),  # runs nothing together
        ("narrow", 4, {}),
        ("picking", 2, {"receipt": True}),
        ("picking", 2, {"operation": "metadata"}),
        ("picking", 2, {"sealed_data": bytes(48)}),
    ],
)
def test_where_one_question_is_asked_several_are_refused(
    served: Served, model: str, count: int, changed: dict[str, object]
) -> None:
    answer = ask(served, [picking(0)] * count, model, **changed)
    assert answer.trailer.status is Code.INVALID_REQUEST
    assert answer.messages == []


def test_the_answers_to_as_many_have_one_length(served: Served) -> None:
    lengths = set()
    for messages, digest in (
        ([picking(0)] * 20, None),
        ([picking(0), picking(BAD), b"x", picking(1)] * 5, None),
        ([picking(0)] * 20, bytes(48)),
    ):
        first, *others = messages
        call = served.session.seal(
            model="picking",
            version=None,
            digest=digest,
            message=first,
            others=[[other] for other in others],
        )
        lengths.add(len(served.bench.ask(FrameType.REQUEST, bytes(call.request))))
    assert len(lengths) == 1


def test_a_refusal_of_the_whole_counts_for_all(served: Served) -> None:
    assert ask(served, [picking(0)] * 3, "nobody").trailer.status is Code.UNKNOWN_MODEL
    pinned = ask_pinned(served, bytes(48))
    assert (pinned.trailer.status, pinned.messages) == (Code.DIGEST_MISMATCH, [])


def ask_pinned(served: Served, digest: bytes) -> OpenedAnswer:
    call = served.session.seal(
        model="picking",
        version=2,
        digest=digest,
        message=picking(0),
        others=[[picking(1)]],
    )
    return served.bench.send(call)


def test_requests_of_many_connections_are_answered_each_its_own(served: Served) -> None:
    """What one request joins is joined with other requests' runs, too."""
    wrong: list[object] = []

    def work(caller: int) -> None:
        for turn in range(10):
            asked = [[(caller + turn + at) % 3] for at in range(1 + (caller + turn) % 7)]
            first, *others = [picking(*index) for index in asked]
            call = served.session.seal(
                model="picking",
                version=None,
                digest=None,
                message=first,
                others=[[other] for other in others],
            )
            answer = served.bench.send(call)
            want = [[TABLE[index[0]]] for index in asked]
            if not others:
                got = [from_response(answer.messages[0])["picked"].tolist()]
            else:
                got = became(answer)
            if got != want:
                wrong.append((caller, turn, got, want))

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert wrong == []


def header(served: Served, **changed: Any) -> ModelHeader:  # noqa: ANN401 - of a header
    return served.bench.sealed(name="other", **{**JOINED, **changed})[1]


@pytest.mark.parametrize(
    ("changed", "most"),
    [
        ({}, limits.QUESTIONS_MAX),
        ({"serving": Serving()}, 1),
        ({"serving": Serving(0, request_rows=9)}, 1),
        ({"serving": Serving(0, batch_rows=5)}, 5),
        ({"serving": Serving(0, batch_rows=64, request_rows=9)}, 9),
        ({"answer_bucket": 4096}, 16),
        ({"answer_bucket": 65_536}, 1),
        ({"answer_bucket": 1 << 20}, 1),
    ],
)
def test_how_many_a_model_takes(served: Served, changed: dict[str, object], most: int) -> None:
    assert most_questions(header(served, **changed)) == most


def test_single_questions_are_answered_as_ever(served: Served) -> None:
    answer = served.bench.infer(served.session, ROWS)
    assert answer.message is not None
    assert answer.trailer.questions == 1
