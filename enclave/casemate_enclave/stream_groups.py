"""Several questions of a stream at once: their runs begin together (SPEC 5.9, 8.8.1.1)."""

from __future__ import annotations

import contextlib
import queue
from typing import TYPE_CHECKING

from casemate import limits
from casemate_enclave.runs import Left
from casemate_enclave.stream_answers import Asked

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.runs import Outcome, Together
    from casemate_enclave.stream_answers import Answered, Answering, StreamQuestion

    Back = list[tuple[StreamQuestion, Answered]]


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
    waiting: list[Asked] = []
    back: Back = []
    for question in questions:
        asked = answering.ask(question, deadline, cancellation)
        if isinstance(asked, Asked):
            waiting.append(asked)
        else:
            back.append((question, asked))
    if back:
        yield back
    while waiting:
        model = waiting[0].run.model
        together = model.begin([asked.run for asked in waiting])
        if together is None:
            break
        members = set(together.members)
        again = yield from _carried_on(answering, together, waiting)
        waiting = [asked for place, asked in enumerate(waiting) if place not in members]
        waiting += again
    if waiting:
        yield []
        yield from _one_by_one(answering, waiting)


def _one_by_one(answering: Answering, waiting: Sequence[Asked]) -> Generator[Back]:
    """Wait for runs that did not begin together, as many at a time as the model joins."""
    while waiting:
        again: list[Asked] = []
        rest = yield from _left_to_model(answering, waiting, again)
        if len(rest) == len(waiting):
            yield _answers(answering, [(rest.pop(0), Left.ALONE)], again)
        waiting = [*rest, *again]


def _answers(
    answering: Answering, back: Sequence[tuple[Asked, Outcome]], again: list[Asked]
) -> Back:
    """Return the answers to those that need no other run; the others are added to ``again``."""
    answers, more = answering.answer(back)
    again += more
    return answers


def _carried_on(
    answering: Answering, together: Together, waiting: Sequence[Asked]
) -> Generator[Back, None, list[Asked]]:
    again: list[Asked] = []
    alone: list[tuple[Asked, Outcome]] = []
    patience_s = limits.LATE_S
    try:
        while not together.done:
            back: list[tuple[Asked, Outcome]] = []
            outcomes = together.receive(patience_s)
            for at, outcome in outcomes:
                (alone if isinstance(outcome, Left) else back).append((waiting[at], outcome))
            if back:
                yield _answers(answering, back, again)
            elif not outcomes and not together.done:
                patience_s = together.hurry()
                yield []
    finally:
        while not together.done:
            if not together.receive(patience_s) and not together.done:
                patience_s = together.hurry()
    if alone:
        yield []
    for left in alone:  # not before the place is given up: each waits for one
        yield _answers(answering, [left], again)
    return again


class _Came:
    """Waits for runs that were left to a model; an ``Asker``."""

    def __init__(self) -> None:
        self._came: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()

    def settle(self, ticket: int, outcome: Outcome) -> None:
        """As ``Asker``."""
        self._came.put((ticket, outcome))

    def settled(self) -> None:
        """As ``Asker``: nothing is held back."""

    def wait(self) -> list[tuple[int, Outcome]]:
        """Wait for what comes back next; return it with what has come meanwhile."""
        some = [self._came.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                some.append(self._came.get_nowait())
        return some


def _left_to_model(
    answering: Answering, waiting: Sequence[Asked], again: list[Asked]
) -> Generator[Back, None, list[Asked]]:
    """Have the model join what it takes on with what else waits for it; return the rest.

    What needs another run then is added to ``again``.
    """
    came = _Came()
    offered = [(asked.run, at) for at, asked in enumerate(waiting)]
    taken = waiting[0].run.model.offer(offered, came) if len(waiting) > 1 else set()
    under_way = set(taken)
    alone: list[tuple[Asked, Outcome]] = []
    try:
        while under_way:
            back: list[tuple[Asked, Outcome]] = []
            for at, outcome in came.wait():
                under_way.discard(at)
                (alone if isinstance(outcome, Left) else back).append((waiting[at], outcome))
            yield _answers(answering, back, again) if back else []
    finally:
        while under_way:
            under_way.difference_update(at for at, _ in came.wait())
    for left in alone:
        yield _answers(answering, [left], again)
    return [asked for at, asked in enumerate(waiting) if at not in taken]
