"""Who waits on an event loop for the answer to a question of a stream (SPEC 5.9)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Generic, TypeVar

from casemate.client.steps import remaining
from casemate.client.stream_answers import PIECES
from casemate.errors import CasemateError, Code, RequestError

if TYPE_CHECKING:
    from casemate.client.core import Inference

T = TypeVar("T")


class AsyncFutureAnswer:
    """Resolves a future of the running loop, of a model with several pieces with the last.

    It can be cancelled at any time: before its question is sent, that is never sent; afterwards the
    answer is dropped when it comes.
    """

    piecewise = False
    taker = None

    def __init__(self) -> None:
        self.future: asyncio.Future[Inference] = asyncio.get_running_loop().create_future()

    def begin(self) -> bool:
        """Tell whether the future was not cancelled."""
        return not self.future.cancelled()

    def answered(self, inference: Inference, *, final: bool) -> None:
        """Resolve the future, if somebody still waits for it."""
        if final and not self.future.done():
            self.future.set_result(inference)

    def failed(self, error: CasemateError) -> None:
        """Fail the future likewise; nothing is logged of one that nobody looks at."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()


class AsyncPieceQueue:
    """Hands pieces to whoever takes them; while it is full, nothing more is received."""

    piecewise = True
    taker = None

    def __init__(self, deadline: float) -> None:
        """``deadline`` of the stream, in seconds of time.monotonic."""
        self._deadline = deadline
        self._queue: asyncio.Queue[tuple[Inference, bool] | CasemateError] = asyncio.Queue(PIECES)
        self._over = False

    def begin(self) -> bool:
        """Tell whether somebody still takes pieces."""
        return not self._over

    async def answered(self, inference: Inference, *, final: bool) -> None:
        """Queue a piece, unless nobody wants it any more; raises RequestError."""
        if self._over:
            return
        try:
            async with asyncio.timeout(remaining(self._deadline)):
                await self._queue.put((inference, final))
        except TimeoutError:
            raise RequestError(
                Code.DEADLINE_EXCEEDED, "nobody took the pieces of an answer in time"
            ) from None

    def failed(self, error: CasemateError) -> None:
        """Queue the failure, in place of what nobody has taken yet if need be."""
        self._over = True
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(error)

    async def take(self) -> tuple[Inference, bool]:
        """Return the next piece and whether it is the last; raises what the question failed with.

        Taken by the one task that the answer is for.
        """
        item = await self._queue.get()
        if isinstance(item, CasemateError):
            raise item
        return item

    def give_up(self) -> None:
        """Take no more pieces; whoever waits for room goes on."""
        self._over = True
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                self._queue.get_nowait()


class Mailbox(Generic[T]):
    """What waits for one task, which takes all of it at once; for one event loop."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._news: asyncio.Future[None] | None = None

    def put(self, item: T) -> None:
        """Have the task take ``item``, too."""
        self._items.append(item)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def take(self) -> list[T]:
        """Wait until there is something; return all that there is, in order."""
        while not self._items:
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        items, self._items = self._items, []
        return items
