"""`AsyncClient` as a blocking client on a loop of its own, so that one test tries both kinds."""

# ruff: noqa: ANN401 - everything is passed on as it came

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self

from casemate.client import AsyncClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from concurrent.futures import Future

    from casemate.client import AsyncStream


class LoopedClient:
    """The methods of `Client`; each is a task of one event loop that runs in a thread."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._client = AsyncClient(*arguments, **options)
        self._parts = self._client._parts
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def verify(self, **options: Any) -> Any:
        return self._wait(self._client.verify(**options))

    def infer(self, *arguments: Any, **options: Any) -> Any:
        return self._wait(self._client.infer(*arguments, **options))

    def infer_sealed(self, *arguments: Any, **options: Any) -> Any:
        return self._wait(self._client.infer_sealed(*arguments, **options))

    def stream(self, *arguments: Any, **options: Any) -> LoopedStream:
        entering = self._client.stream(*arguments, **options)
        return LoopedStream(self._wait(entering.__aenter__()), self._loop, entering)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class LoopedStream:
    """The methods of `Stream`, likewise."""

    def __init__(
        self, stream: AsyncStream, loop: asyncio.AbstractEventLoop, entered: object
    ) -> None:
        self._stream = stream
        self._loop = loop
        self._entered = entered  # a block that nobody refers to any more is left

    def _start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def submit(self, inputs: Any) -> Future[Any]:
        async def result() -> Any:
            return await answer

        answer = self._start(self._stream.submit(inputs)).result(60)
        return self._start(result())

    def map(self, batches: Any) -> Iterator[Any]:
        return self._each(self._stream.map(batches))

    def as_finished(self, batches: Any) -> Iterator[Any]:
        return self._each(self._stream.as_finished(batches))

    def pieces(self, inputs: Any) -> Iterator[Any]:
        return self._each(self._stream.pieces(inputs))

    def _each(self, answers: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(answers, None)

        try:
            while (answer := self._start(following()).result(60)) is not None:
                yield answer
        finally:
            self._start(answers.aclose()).result(60)  # type: ignore[attr-defined]

    def cancel(self) -> None:
        self._start(self._stream.cancel()).result(60)

    def close(self) -> None:
        self._start(self._stream.aclose()).result(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close() if kind is None else self.cancel()


def is_framed(client: AsyncClient) -> bool:
    """Whether a framed connection is open to the host that the client uses (SPEC 9.6.3)."""
    connection, *_ = client._parts.get().targets.in_order()
    way = connection._framed._way
    return way is not None and (way._many is not None or len(way._pool) > 0)


async def until_framed(client: AsyncClient, model: str) -> None:
    """Ask what ``model`` takes until a framed connection is open for the next call."""
    while not is_framed(client):
        await client.metadata(model)
