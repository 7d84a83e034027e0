"""What a client keeps of the calls of many tasks on one stream (SPEC 9.6.2), on an event loop."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from casemate.client.call_book import CallBook, Failure
from casemate.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable

_GRAIN_S: Final = 0.01  # how late a call may hear that its time is up, so that looking costs little


class _Question:
    """One call that waits; ``until`` in seconds of the loop's clock."""

    __slots__ = ("outcome", "until")

    def __init__(self, outcome: asyncio.Future[bytes | Failure], until: float) -> None:
        self.outcome = outcome
        self.until = until

    def settle(self, outcome: bytes | Failure) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class AsyncCallBook(CallBook[_Question]):
    """A `CallBook` in which tasks wait; one timer sees to all of their deadlines."""

    def __init__(self, target: str, wake: Callable[[], None]) -> None:
        """``wake`` whoever sends."""
        super().__init__()
        self._target = target
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.TimerHandle | None = None
        self._look_at = math.inf

    async def call(self, request: bytes, timeout_s: float) -> bytes:
        """Ask and return the answer; raises RequestError."""
        outcome: asyncio.Future[bytes | Failure] = self._loop.create_future()
        until = self._loop.time() + timeout_s
        number = self.ask(_Question(outcome, until), request, timeout_s)
        self._wake()
        if until < self._look_at:
            self._look_next(until)
        try:
            answer = await outcome
        finally:
            if self.give_up(number):
                self._wake()
        if isinstance(answer, bytes):
            return answer
        raise answer.error()

    def fail(self, failure: Failure) -> None:
        """As `CallBook.fail`."""
        super().fail(failure)
        self._look_next(math.inf)

    def _look_next(self, at: float) -> None:
        if self._look is not None:
            self._look.cancel()
        self._look_at = at
        self._look = self._loop.call_at(at, self._look_for_late) if at < math.inf else None

    def _look_for_late(self) -> None:
        now = self._loop.time()
        late = Failure(Code.DEADLINE_EXCEEDED, f"{self._target}: no answer before the deadline")
        first = math.inf
        for question in self.under_way():
            if question.until <= now:
                question.settle(late)
            else:
                first = min(first, question.until)
        self._look_next(max(first, now + _GRAIN_S))
