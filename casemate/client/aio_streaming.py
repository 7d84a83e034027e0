"""Streams for event loops: `Stream`'s decisions on asyncio (SPEC 5.9)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable
from functools import partial
from typing import TYPE_CHECKING, Self, TypeAlias

from casemate.client.aio_answers import AsyncFutureAnswer, AsyncPieceQueue, Mailbox
from casemate.client.steps import LARGE, remaining
from casemate.client.stream_core import StreamCore, cancelled, in_flight_bound, no_room

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
    from types import TracebackType

    import numpy as np

    from casemate.client.core import Inference
    from casemate.client.steps import Answers, AsyncDriver
    from casemate.client.stream_answers import Asked
    from casemate.client.stream_core import StreamPlace

    Batches: TypeAlias = (
        Iterable[Mapping[str, np.ndarray]] | AsyncIterable[Mapping[str, np.ndarray]]
    )
    _Asked: TypeAlias = tuple[int, asyncio.Future[Inference]]


class AsyncStream:
    """One sealed stream to one model, for any number of tasks. Made by `AsyncClient.stream`.

    Leaving its block sends the end and waits for all answers; leaving it by an exception, as when
    its task is cancelled, cancels what is under way, in the enclave too. A stream that failed is
    over: it is never repeated by itself, because some of its questions may have been answered.
    """

    def __init__(
        self, place: StreamPlace, driver: AsyncDriver, *, outputs: Sequence[str], in_flight: int
    ) -> None:
        """Begin the stream that ``place`` describes; ``driver`` is its client's."""
        self._in_flight = in_flight_bound(in_flight)
        self._deadline = place.deadline
        self._room = _Room(in_flight)
        self._outgoing: Mailbox[Asked | None] = Mailbox()  # the room bounds it
        self._core = StreamCore(place, self._room, self._outgoing.put, outputs)
        left = remaining(place.deadline)
        self._call = place.connection.stream(self._messages(), left)
        self._receiver = asyncio.create_task(
            driver.run(self._core.receive(self._call)), name="stream"
        )

    # Asking

    async def submit(self, inputs: Mapping[str, np.ndarray]) -> asyncio.Future[Inference]:
        """Ask about ``inputs``; waits while ``in_flight`` questions are unanswered.

            answer = await stream.submit(inputs)
            result = await answer

        Arrays are sealed while they are sent: leave them unchanged until the future is done. Of a
        model that answers piece by piece the future gets the last one. Cancelling the future gives
        its question up: it is not sent, or its answer is dropped. Raises RequestError; the future
        raises RequestError (the service refused this question), or what ended the stream.
        """
        answer = AsyncFutureAnswer()
        await self._ask(inputs, answer)
        return answer.future

    async def map(self, batches: Batches) -> AsyncIterator[Inference]:
        """Yield the answers to ``batches`` in their order, asking ahead as far as ``in_flight``.

        ``batches`` may be asynchronous. Iteration that ends early gives up what was asked ahead.
        """
        async with contextlib.aclosing(self._ahead(batches, in_order=True)) as ahead:
            async for _, future in ahead:
                yield await future

    async def as_finished(self, batches: Batches) -> AsyncIterator[tuple[int, Inference]]:
        """Yield (index, answer) to ``batches`` as they finish, asking ahead likewise."""
        async with contextlib.aclosing(self._ahead(batches, in_order=False)) as ahead:
            async for index, future in ahead:
                yield index, await future

    async def pieces(self, inputs: Mapping[str, np.ndarray]) -> AsyncIterator[Inference]:
        """Ask about ``inputs`` and yield the answer piece by piece as the model makes it.

        While nobody takes the next piece, the model waits, and so do the stream's other answers.
        """
        answer = AsyncPieceQueue(self._deadline)
        await self._ask(inputs, answer)
        try:
            final = False
            while not final:
                piece, final = await answer.take()
                yield piece
        finally:
            answer.give_up()

    async def _ask(self, inputs: Mapping[str, np.ndarray], answers: Answers) -> None:
        if sum([array.nbytes for array in inputs.values()]) < LARGE:
            asked = self._core.question(inputs, answers)
        else:
            asked = await asyncio.to_thread(self._core.question, inputs, answers)
        if self._room.locked():
            await self._await_room()
        else:
            await self._room.acquire()  # at once
        self._core.admit(asked)

    async def _await_room(self) -> None:
        try:
            async with asyncio.timeout(remaining(self._deadline)):
                await self._room.acquire()
        except TimeoutError:
            raise no_room() from None

    async def _ahead(self, batches: Batches, *, in_order: bool) -> AsyncGenerator[_Asked, None]:
        """Yield the questions' futures, once asked or once finished, while others are asked.

        At most ``in_flight`` are asked that nobody has taken.
        """
        ready: Mailbox[_Asked | None] = Mailbox()
        untaken = asyncio.Semaphore(self._in_flight)
        waiting: dict[int, asyncio.Future[Inference]] = {}

        def finished(index: int, future: asyncio.Future[Inference]) -> None:
            ready.put((index, future))

        async def ask() -> None:
            index = 0
            async for batch in _each(batches):
                await untaken.acquire()
                future = waiting[index] = await self.submit(batch)
                if in_order:
                    ready.put((index, future))
                else:
                    future.add_done_callback(partial(finished, index))
                index += 1

        def all_asked(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                task.exception()  # nothing is logged of one that nobody looks at
            ready.put(None)

        asking = asyncio.create_task(ask())
        asking.add_done_callback(all_asked)
        try:
            while waiting or not asking.done():
                for asked in filter(None, await ready.take()):
                    del waiting[asked[0]]
                    untaken.release()
                    yield asked
            await asking  # raises what ended the asking
        finally:
            asking.cancel()
            for future in waiting.values():
                future.cancel()

    # Ending

    async def cancel(self) -> None:
        """End the stream now; what runs for it in the enclave ends too."""
        self._core.fail(cancelled())
        self._call.cancel()
        self._receiver.cancel()
        await asyncio.wait({self._receiver})

    async def aclose(self) -> None:
        """Say that there are no more questions, and wait until all are answered.

        Raises what ended the stream, if it did not end well. A task that is cancelled while it
        waits cancels the stream.
        """
        self._core.end()
        try:
            await asyncio.wait({self._receiver})
        except asyncio.CancelledError:
            await self.cancel()
            raise
        if self._core.failure is not None:
            raise self._core.failure

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            await self.aclose()
        else:
            await self.cancel()

    # Sending: the call takes messages from this generator, in a task of its own, as fast as they go

    async def _messages(self) -> AsyncGenerator[bytes, None]:
        sending = self._core.sending(self._in_flight)
        for message in sending.rest():
            yield message
        complete = False
        while not complete:
            waiting = await self._outgoing.take()
            complete = None in waiting
            for message in sending.seal([asked for asked in waiting if asked is not None]):
                yield message
        for message in sending.end():
            yield message


class _Room(asyncio.Semaphore):
    def release(self, n: int = 1) -> None:
        for _ in range(n):
            super().release()


async def _each(batches: Batches) -> AsyncIterator[Mapping[str, np.ndarray]]:
    if isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield batch
    else:
        for batch in batches:
            yield batch
