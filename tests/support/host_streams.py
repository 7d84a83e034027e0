"""A stream of either kind of connection, as a test uses it: it says message by message."""

from __future__ import annotations

import asyncio
import queue
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from casemate.client.transport import HostConnection
from casemate.errors import Code, RequestError
from tests.support.aio_connection import LoopedConnection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

_BROKEN = object()


class Conversation(ABC):
    """What is said, and taken, on one stream; ``asked``: messages that the connection took."""

    asked = 0

    @abstractmethod
    def put(self, item: Any) -> None:  # noqa: ANN401 - a message, the end or a fault
        """Have the connection get ``item`` next."""

    @abstractmethod
    def take(self) -> bytes | None:
        """The next message; None after the last. Raises RequestError."""

    @abstractmethod
    def cancel(self) -> None:
        """End the stream."""

    def say(self, *messages: bytes) -> Self:
        for message in messages:
            self.put(message)
        return self

    def end(self) -> Self:
        self.put(None)
        return self

    def fail(self) -> None:
        """Have there be no next message, but an exception."""
        self.put(_BROKEN)

    def rest(self) -> bytes:
        """All that is still to come."""
        return b"".join(iter(self.take, None))

    def until(self, size: int) -> bytes:
        """Take until there are ``size`` bytes."""
        taken = b""
        while len(taken) < size:
            taken += self.take() or b""
        return taken

    def outcome(self) -> bytes | Code:
        """All that is still to come, or the code of the error."""
        try:
            return self.rest()
        except RequestError as error:
            self.end()  # as a stream does, so that whoever sends ends
            return error.code

    def _next(self, item: Any) -> bytes:  # noqa: ANN401
        if item is _BROKEN:
            raise ZeroDivisionError
        self.asked += 1
        message: bytes = item
        return message


class _Threads(Conversation):
    def __init__(self, connection: HostConnection, timeout_s: float) -> None:
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stream = connection.stream(self._messages(), timeout_s)

    def _messages(self) -> Iterator[bytes]:
        while (item := self._said.get()) is not None:
            yield self._next(item)

    def put(self, item: Any) -> None:  # noqa: ANN401
        self._said.put(item)

    def take(self) -> bytes | None:
        message: bytes | None = self._stream.take()
        return message

    def cancel(self) -> None:
        self._stream.cancel()


class _Loop(Conversation):
    def __init__(self, looped: LoopedConnection, timeout_s: float) -> None:
        self._looped = looped
        self._said: asyncio.Queue[Any] = asyncio.Queue()

        async def begin() -> Any:  # noqa: ANN401
            return looped.connection.stream(self._messages(), timeout_s)

        self._stream = looped.submit(begin()).result(60)

    async def _messages(self) -> AsyncGenerator[bytes, None]:
        while (item := await self._said.get()) is not None:
            yield self._next(item)

    def put(self, item: Any) -> None:  # noqa: ANN401
        self._looped.loop.call_soon_threadsafe(self._said.put_nowait, item)

    def take(self) -> bytes | None:
        message: bytes | None = self._looped.submit(self._stream.take()).result(60)
        return message

    def cancel(self) -> None:
        async def cancelled() -> None:
            self._stream.cancel()

        self._looped.submit(cancelled()).result(60)


class Blocking:
    """A connection for threads that has fetched evidence, and so knows of an offer."""

    def __init__(self, target: str) -> None:
        self.connection = HostConnection(target)
        self.fetch_evidence()

    def fetch_evidence(self) -> None:
        self.connection.call("GetEvidence", b"", 60)

    def stream(self, timeout_s: float = 60) -> Conversation:
        return _Threads(self.connection, timeout_s)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Looped:
    """Likewise, for an event loop."""

    def __init__(self, target: str) -> None:
        self.looped = LoopedConnection(target)
        self.fetch_evidence()

    def fetch_evidence(self) -> None:
        self.looped.fetch_evidence()

    def stream(self, timeout_s: float = 60) -> Conversation:
        return _Loop(self.looped, timeout_s)

    def close(self) -> None:
        self.looped.hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.looped.close()
