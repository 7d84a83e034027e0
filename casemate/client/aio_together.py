"""Questions that tasks ask of one model at the same time, under one seal (SPEC 5.10)."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, NamedTuple

from casemate.client.core import Question
from casemate.client.steps import deadline_after
from casemate.errors import CasemateError, RequestError, SealedStatusError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.client.core import Answer, ClientCore, Inference
    from casemate.client.steps import AsyncDriver


class _Alike(NamedTuple):
    """What questions of one request have in common."""

    model: str
    version: int | None
    timeout_s: float
    repeatable: bool


class _Came(NamedTuple):
    """Where in which answer a question's own is."""

    answer: Answer
    place: int


class _Member:
    """A question, with what becomes of it: None if it is to be asked by itself."""

    __slots__ = ("most", "outcome", "question")

    def __init__(
        self, question: Question, most: int, outcome: asyncio.Future[_Came | Exception | None]
    ) -> None:
        self.question = question
        self.most = most
        self.outcome = outcome

    def settle(self, outcome: _Came | Exception | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Together:
    """Gathers what is asked in one turn of the loop; for any number of tasks of it.

    Promise: a question that nothing else is under way with waits for nothing, and of those under
    way no request takes more than half, so that while one is answered another can be made.
    """

    def __init__(self, core: ClientCore, driver: AsyncDriver) -> None:
        self._core = core
        self._driver = driver
        self._under_way = 0
        self._gathering: dict[_Alike, list[_Member]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question, timeout_s: float, *, repeatable: bool) -> Inference:
        """Ask as `ClientCore.ask`, by itself or together with others."""
        self._under_way += 1
        try:
            failed: RequestError | None = None
            most = self._core.most_together(question) if self._under_way > 1 else 1
            if most > 1:
                deadline_after(timeout_s)  # refuses what is no time
                alike = _Alike(question.model, question.version, timeout_s, repeatable)
                came = await self._join(alike, question, most)
                if came is not None:
                    try:
                        return came.answer.inference(came.place)
                    except SealedStatusError as error:
                        failed = error
            course = self._core.ask(
                question, repeatable=repeatable, timeout_s=timeout_s, failed=failed
            )
            return (await self._driver.run(course)).inference()
        finally:
            self._under_way -= 1

    async def _join(self, alike: _Alike, question: Question, most: int) -> _Came | None:
        """Wait for what becomes of it; raises what its request ends with."""
        loop = asyncio.get_running_loop()
        members = self._gathering.get(alike)
        if members is None:
            members = self._gathering[alike] = []
            loop.call_soon(self._ask_gathered, alike)
        member = _Member(question, most, loop.create_future())
        members.append(member)
        outcome = await member.outcome
        if isinstance(outcome, CasemateError):
            raise _anew(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _ask_gathered(self, alike: _Alike) -> None:
        members = [m for m in self._gathering.pop(alike) if not m.outcome.done()]
        for some in _evenly(members, self._under_way // 2):
            if len(some) == 1:
                some[0].settle(None)
                continue
            task = asyncio.ensure_future(self._ask_several(alike, some))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            leaving = _Leaving(some, task)
            for member in some:
                member.outcome.add_done_callback(leaving)

    async def _ask_several(self, alike: _Alike, members: list[_Member]) -> None:
        first, *others = (member.question.content for member in members)
        question = Question(alike.model, alike.version, first, others=others)
        course = self._core.ask(question, repeatable=alike.repeatable, timeout_s=alike.timeout_s)
        try:
            answer = await self._driver.run(course)
        except Exception as error:  # noqa: BLE001 - each of those who asked meets it
            for member in members:
                member.settle(error)
        else:
            for place, member in enumerate(members):
                member.settle(_Came(answer, place))


class _Leaving:
    """Ends a request when nobody waits for it any more."""

    def __init__(self, members: list[_Member], task: asyncio.Task[None]) -> None:
        self._left = len(members)
        self._task = task

    def __call__(self, outcome: asyncio.Future[_Came | Exception | None]) -> None:
        self._left -= 1
        if not self._left and outcome.cancelled():
            self._task.cancel()


def _evenly(members: list[_Member], most: int) -> Iterator[list[_Member]]:
    """Yield ``members`` in as few parts as may be, of nearly one size."""
    if not members:
        return
    most = max(1, min(most, *(member.most for member in members)))
    parts = math.ceil(len(members) / most)
    for part in range(parts):
        yield members[part::parts]


def _anew(error: CasemateError) -> CasemateError:
    """Return an error of the same kind, which several may not raise at once."""
    if isinstance(error, RequestError):
        return type(error)(error.code, error.detail, error.retry_after_s)
    return type(error)(error.code, error.detail)
