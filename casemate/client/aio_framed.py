"""Framed connections for event loops: what a host offered, and the ways to it (SPEC 9.6.3).

No call waits for a connection where none was had before: the first is made beside calls by gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING, Any, Final

from casemate import limits
from casemate.client.aio_framed_many import ManyCalls
from casemate.client.aio_framed_opening import opened
from casemate.client.aio_framed_pool import Pool
from casemate.client.aio_framed_stream import AsyncFramedStream
from casemate.client.call_stream import Opening
from casemate.client.framed import FramedHost, hello_of, name_of, offered
from casemate.client.framed_dial import NowhereError
from casemate.frames import COUNTED

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from casemate.client.access import HostAccess
    from casemate.wire import Buffer
_REQUEST_MAX: Final = limits.FRAME_MAX - COUNTED  # a larger one fits no frame


class AsyncFramed:
    """The framed connections of one client to one target; for one event loop."""

    def __init__(self, target: str, access: HostAccess) -> None:
        self._target = target
        self._name = name_of(target, access)
        self._hello = hello_of(access)
        self._way: _Way | None = None
        self._old: list[_Way] = []
        self._streams: set[AsyncFramedStream] = set()
        self._closed = False

    @property
    def promising(self) -> bool:
        """Whether there is an offer that has not led nowhere of late."""
        return self._way is not None and self._way.promising

    def answer_came(self, metadata: Iterable[tuple[Any, ...]] | None) -> None:
        """Take the offer of a call's answer, in its trailing metadata, for good."""
        if self._name is None or self._closed:
            return
        offer = offered(metadata)
        if self._way is not None and self._way.host.offer == offer:
            return
        if self._way is not None:
            self._way.retire()
            self._old = [way for way in (*self._old, self._way) if not way.over]
        host = FramedHost(self._name, offer) if offer is not None else None
        self._way = _Way(host, self._hello, self._target) if host is not None else None

    def shared(self, request: Buffer, timeout_s: float) -> Coroutine[Any, Any, bytes] | None:
        """Ask on the connection of many, and wait for the answer; None if that cannot be now.

        Raises RequestError when it is awaited.
        """
        return None if self._way is None else self._way.shared(request, timeout_s)

    def call(self, request: Buffer, timeout_s: float) -> Awaitable[bytes | None] | None:
        """Make a large call as ``shared`` does a small one, or see to what that one lacks.

        None, here or there, if the call is to be made otherwise.
        """
        return None if self._way is None else self._way.call(request, timeout_s)

    def stream(self, timeout_s: float) -> AsyncFramedStream | None:
        """Return a stream that is to be begun; None if no offer may lead somewhere."""
        if self._way is None or not self._way.promising:
            return None
        connect = self._way.connected
        stream = AsyncFramedStream(connect, self._target, timeout_s, self._streams.discard)
        self._streams.add(stream)
        return stream

    async def close(self) -> None:
        """End all connections; what is under way fails."""
        self._closed = True
        for stream in [*self._streams]:
            stream.cancel()
            await stream.ended()
        ways, self._way, self._old = [*self._old, self._way], None, []
        for way in ways:
            if way is not None:
                await way.close()


class _Way:
    """All that is open to the host of one offer."""

    def __init__(self, host: FramedHost, hello: bytes, target: str) -> None:
        self.host = host
        self._hello = hello
        self._target = target
        self._not_before = 0.0  # of time.monotonic
        self._opening = Opening()
        self._many: ManyCalls | None = None
        self._leaving: list[ManyCalls] = []  # asked no more, but not answered to the end
        self._pool = Pool(target)
        self._proven = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def promising(self) -> bool:
        """Whether connections can be had, for all that is known."""
        return time.monotonic() >= self._not_before

    @property
    def over(self) -> bool:
        """Whether nothing is open any more."""
        return not (self._tasks or self._pool or self._many or self._still_leaving())

    def shared(self, request: Buffer, timeout_s: float) -> Coroutine[Any, Any, bytes] | None:
        """As `AsyncFramed.shared`."""
        if self._many is None or len(request) > limits.CALL_STREAM_REQUEST_MAX:
            return None
        return self._many.call(bytes(request), timeout_s)

    def call(self, request: Buffer, timeout_s: float) -> Awaitable[bytes | None] | None:
        """As `AsyncFramed.call`."""
        if len(request) > limits.CALL_STREAM_REQUEST_MAX:
            return None if len(request) > _REQUEST_MAX else self._exchange(request, timeout_s)
        if self._many is None and not self._tasks and self.promising and self._opening.wanted():
            self._open(self._begin)
        return None

    async def _exchange(self, request: Buffer, timeout_s: float) -> bytes | None:
        """Make a large call, if need be on a new connection where others were had before."""
        answer = await self._pool.call(request, timeout_s)
        if answer is not None or not self.promising:
            return answer
        if not self._proven:
            if not self._tasks and self._opening.wanted():
                self._open(self._pool.add)
            return None
        if len(self._pool) + len(self._tasks) >= limits.FRAMED_POOL:
            return None
        until = time.monotonic() + timeout_s
        await asyncio.wait([self._open(self._pool.add)], timeout=timeout_s)
        return await self._pool.call(request, until - time.monotonic())

    def _begin(self, sock: socket.socket) -> None:
        self._leaving = self._still_leaving()
        self._many = ManyCalls(sock, self._target, self._left)

    def _left(self, many: ManyCalls) -> None:
        if self._many is many:
            self._many = None
            self._leaving.append(many)
            self._opening.over(None)

    def _still_leaving(self) -> list[ManyCalls]:
        return [many for many in self._leaving if not many.over]

    def _open(self, use: Callable[[socket.socket], None]) -> asyncio.Task[None]:
        async def work() -> None:
            with contextlib.suppress(NowhereError, OSError):
                use(await self.connected(limits.FRAMED_CONNECT_S))

        task = asyncio.create_task(work(), name="framed connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def connected(self, within_s: float) -> socket.socket:
        """Return a new connection, of which nobody knows; raises NowhereError, OSError."""
        try:
            sock = await opened(self.host, self._hello, within_s)
        except (NowhereError, OSError) as error:  # the latter: this process has no room for it
            if isinstance(error, OSError) or error.tells(within_s):
                again = time.monotonic() + limits.CALL_STREAM_AGAIN_S
                self._not_before = max(self._not_before, again)
            raise
        self._proven = True
        return sock

    def retire(self) -> None:
        """Ask nothing more; what was asked is answered."""
        self._not_before = math.inf
        for task in self._tasks:
            task.cancel()
        self._pool.retire()
        if self._many is not None:
            self._many.retire()

    async def close(self) -> None:
        """End all; calls under way fail."""
        tasks = list(self._tasks)
        self.retire()
        self._pool.close()
        for many in self._leaving:
            many.close()
        await asyncio.gather(*tasks, return_exceptions=True)
