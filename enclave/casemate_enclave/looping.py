"""Models that answer piece by piece: a step, run until it says stop (SPEC 8.9)."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from casemate.errors import Code, RequestError
from casemate_enclave.cancellation import Cancellation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casemate.sealed_model import ModelLoop
    from casemate_enclave.runtime import LoadedModel, Tensors


def pieces(
    model: LoadedModel,
    loop: ModelLoop | None,
    inputs: Tensors,
    outputs: Sequence[str],
    *,
    deadline: float,
    cancellation: Cancellation,
) -> Iterator[tuple[Tensors, bool]]:
    """Yield the named outputs of each step, and whether it is the last; without ``loop`` one.

    A step is yielded no earlier than the interval of ``loop`` after the one before was due.
    Raises as ``LoadedModel.run``.
    """
    if loop is None:
        yield model.run(inputs, outputs, deadline, cancellation), True
        return
    wanted = list(dict.fromkeys([*outputs, *loop.outputs]))
    begun = time.monotonic()
    for step in range(1, loop.steps + 1):
        values = model.run(inputs, wanted, deadline, cancellation)
        final = step == loop.steps or _stops(loop, values)
        _pause(begun + step * loop.interval / 1000, deadline, cancellation)
        yield {name: values[name] for name in outputs}, final
        if final:
            return
        inputs = {**inputs, **{state.input: values[state.output] for state in loop.state}}


def last_piece(
    model: LoadedModel,
    loop: ModelLoop | None,
    inputs: Tensors,
    outputs: Sequence[str],
    *,
    deadline: float,
    cancellation: Cancellation | None = None,
) -> Tensors:
    """Return the last step's outputs: the whole answer outside of a stream."""
    if loop is None:
        return model.run(inputs, outputs, deadline, cancellation)
    cancellation = cancellation or Cancellation()
    steps = pieces(model, loop, inputs, outputs, deadline=deadline, cancellation=cancellation)
    [(values, _)] = deque(steps, maxlen=1)
    return values


def _stops(loop: ModelLoop, values: Tensors) -> bool:
    if loop.stop is None:
        return False
    flag = values[loop.stop]
    if flag.size != 1:
        raise RequestError(Code.MODEL_FAILED, "the model's stop output is not one element")
    return bool(flag.reshape(-1)[0])


def _pause(due: float, deadline: float, cancellation: Cancellation) -> None:
    wait_s = due - time.monotonic()
    if wait_s <= 0:
        return
    if time.monotonic() + wait_s >= deadline:
        raise RequestError(Code.DEADLINE_EXCEEDED, "the next step is due after the deadline")
    if cancellation.wait(wait_s):
        raise RequestError(Code.DEADLINE_EXCEEDED, "nobody waits for the answer any more")
