"""Several questions of a stream at once: their runs begin together (SPEC 5.9, 8.8.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casemate import limits
from casemate_enclave.runs import finish, resume

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.runs import Run, Steps, Together
    from casemate_enclave.stream_answers import Answered, Answering, StreamQuestion

    Back = list[tuple[StreamQuestion, Answered]]


class _Asked(NamedTuple):
    question: StreamQuestion
    steps: Steps[Answered]
    need: Run


def answer_together(
    answering: Answering,
    questions: Sequence[StreamQuestion],
    deadline: float,
    cancellation: Cancellation,
) -> Generator[Back]:
    """Yield the answers to ``questions``, some at a time as they come.

    And none before what takes long, so that another thread may carry on. To be closed if it is not
    read to its end: what is under way is then waited for.
    """
    waiting: list[_Asked] = []
    back: Back = []
    for question in questions:
        steps = answering.answering(question, deadline, cancellation)
        try:
            need = next(steps)
        except StopIteration as end:
            back.append((question, end.value))
        else:
            if need is not None:
                waiting.append(_Asked(question, steps, need))
    if back:
        yield back
    while waiting:
        model = waiting[0].need.model
        together = model.begin([asked.need for asked in waiting])
        if together is None:
            break
        members = set(together.members)
        yield from _carried_on(together, waiting)
        waiting = [asked for place, asked in enumerate(waiting) if place not in members]
    if waiting:
        yield []
    for asked in waiting:
        yield [(asked.question, finish(asked.steps, asked.need))]


def _carried_on(together: Together, waiting: Sequence[_Asked]) -> Generator[Back]:
    patience_s = limits.LATE_S
    try:
        while not together.done:
            outcomes = together.receive(patience_s)
            if outcomes:
                yield [
                    (waiting[at].question, resume(waiting[at].steps, waiting[at].need, outcome))
                    for at, outcome in outcomes
                ]
            elif not together.done:
                patience_s = together.hurry()
                yield []
    finally:
        while not together.done:
            if not together.receive(patience_s) and not together.done:
                patience_s = together.hurry()
