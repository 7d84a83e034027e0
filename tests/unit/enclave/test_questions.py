"""Which runs several questions of one request take (SPEC 5.10.3)."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate import tensors
from casemate.envelope import questions
from casemate.errors import Code, RequestError, SealedStatusError
from casemate.tensors import TensorSpec
from casemate_enclave.batching import count_rows
from casemate_enclave.questions import Questions

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_enclave.runs import Run

SPECS = (TensorSpec("x", "FP32", (0, 0)),)


def model(axis: int = 0, batch_rows: int = 24, request_rows: int | None = None) -> Any:  # noqa: ANN401 - a stand-in
    serving = SimpleNamespace(
        batch_dimension=axis, batch_rows=batch_rows, request_rows=request_rows
    )
    return SimpleNamespace(
        header=SimpleNamespace(serving=serving, name="m", version=1),
        requests=tensors.RequestReader(SPECS, SPECS),
        loaded=SimpleNamespace(rows=lambda inputs: count_rows(inputs, axis)),
    )


def message(value: float, rows: int = 1, columns: int = 2) -> memoryview:
    array = np.full((rows, columns), value, np.float32)
    return memoryview(tensors.to_request({"x": array}))


def echo(run: Run) -> Any:  # noqa: ANN401 - tensors by name, or an error
    return {"x": run.inputs["x"]}


def answer(
    served: Any,  # noqa: ANN401 - a stand-in
    messages: list[memoryview],
    outcome: Callable[[Run], Any] = echo,
) -> tuple[list[tuple[int, ...]], list[object]]:
    """The shapes of the runs, and what became of each: its numbers, or why it has none."""
    steps = Questions(served, messages, time.monotonic() + 60, None).run()
    shapes: list[tuple[int, ...]] = []
    parts: list[memoryview] = []
    try:
        run = next(steps)
        while True:
            shapes.append(run.inputs["x"].shape)
            outputs = outcome(run)
            run = steps.throw(outputs) if isinstance(outputs, Exception) else steps.send(outputs)
    except StopIteration as end:
        parts = [memoryview(b"".join(part)) for part in end.value]
    return shapes, [became(part) for part in parts]


def became(part: memoryview) -> object:
    try:
        return tensors.from_response(questions.read(part))["x"].tolist()
    except SealedStatusError as error:
        return error.code


def test_questions_that_are_alike_take_one_run() -> None:
    shapes, answers = answer(model(), [message(at, 2) for at in range(12)])
    assert shapes == [(24, 2)]
    assert answers == [[[at, at]] * 2 for at in range(12)]


@pytest.mark.parametrize(
    ("served", "most"), [(model(), 24), (model(request_rows=10), 10), (model(batch_rows=5), 5)]
)
def test_no_run_has_more_rows_than_may_run_together(served: Any, most: int) -> None:  # noqa: ANN401 - a stand-in
    shapes, answers = answer(served, [message(at, 5) for at in range(12)])
    assert [rows for rows, _ in shapes] == [most // 5 * 5] * (12 * 5 // (most // 5 * 5))
    assert answers == [[[at, at]] * 5 for at in range(12)]


def test_questions_of_other_shapes_take_runs_of_their_own() -> None:
    asked = [message(0), message(1, 3), message(2, 1, 4), message(3)]
    shapes, answers = answer(model(), asked)
    assert sorted(shapes) == [(1, 4), (5, 2)]
    assert answers == [[[0, 0]], [[1, 1]] * 3, [[2] * 4], [[3, 3]]]


def test_rows_along_another_axis_are_joined_along_it() -> None:
    shapes, answers = answer(model(axis=1), [message(at, 3, 2) for at in range(4)])
    assert shapes == [(3, 8)]
    assert answers == [[[at, at]] * 3 for at in range(4)]


@pytest.mark.parametrize("code", [Code.MODEL_FAILED, Code.INVALID_INPUT])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_run_that_fails_for_one_is_done_for_each_alone(code: Code, rows: int) -> None:
    """Once together, whether they were alike or not."""

    def fail(run: Run) -> Any:  # noqa: ANN401 - as echo
        return RequestError(code, "") if 2 in run.inputs["x"] else echo(run)

    asked = [message(at, rows if at == 1 else 1) for at in range(4)]
    shapes, answers = answer(model(), asked, fail)
    assert shapes == [(3 + rows, 2), (1, 2), (rows, 2), (1, 2), (1, 2)]
    assert answers == [[[0, 0]], [[1, 1]] * rows, code, [[3, 3]]]


def test_a_failure_that_is_nobodys_counts_for_all_at_once() -> None:
    late = RequestError(Code.DEADLINE_EXCEEDED, "")
    for rows in (1, 2):
        asked = [message(at, rows if at == 1 else 1) for at in range(4)]
        shapes, answers = answer(model(), asked, lambda _run: late)
        assert len(shapes) == 1
        assert answers == [Code.DEADLINE_EXCEEDED] * 4


def test_outputs_without_each_ones_rows_are_nobodys() -> None:
    def short(run: Run) -> Any:  # noqa: ANN401 - as echo
        return {"x": run.inputs["x"][:2]}

    for rows in (1, 2):
        asked = [message(at, rows if at == 1 else 1) for at in range(4)]
        shapes, answers = answer(model(), asked, short)
        assert len(shapes) == 5
        assert answers == [[[0, 0]], [[1, 1]] * rows, [[2, 2]], [[3, 3]]]
