"""Framed connections for event loops: what a host offered, and the ways to it (SPEC 9.6.3).

Calls never wait for a connection: one is made beside them, and until there is one they are made by
gRPC.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from casemate import limits
from casemate.client.aio_framed_many import ManyCalls
from casemate.client.aio_framed_opening import opened
from casemate.client.aio_framed_pool import Pool
from casemate.client.call_stream import Opening
from casemate.client.framed import FramedHost, hello_of, name_of, offered
from casemate.client.framed_dial import NowhereError
from casemate.frames import COUNTED

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

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
        self._closed = False

    @property
    def promising(self) -> bool:
        """Whether there is an offer that has not led nowhere of late."""
        return self._way is not None and self._way.promising

    def evidence_came(self, metadata: Iterable[tuple[Any, ...]] | None) -> None:
        """Take the offer of an answer to `GetEvidence`, in its trailing metadata, for good."""
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

    async def call(self, request: Buffer, timeout_s: float) -> bytes | None:
        """Return the answer; None if the call is to be made otherwise. Raises RequestError."""
        if self._way is None:
            return None
        return await self._way.call(request, timeout_s)

    async def close(self) -> None:
        """End all connections; calls under way fail."""
        self._closed = True
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

    async def call(self, request: Buffer, timeout_s: float) -> bytes | None:
        """As `AsyncFramed.call`."""
        if len(request) > limits.CALL_STREAM_REQUEST_MAX:
            if len(request) > _REQUEST_MAX:
                return None
            answer = await self._pool.call(request, timeout_s)
            if answer is None:
                self._grow()
            return answer
        if self._many is not None:
            return await self._many.call(bytes(request), timeout_s)
        if not self._tasks and self.promising and self._opening.wanted():
            self._open(self._begin)
        return None

    def _grow(self) -> None:
        """Open a connection for the next large call, unless there are enough."""
        if not self.promising:
            return
        if self._proven:
            if len(self._pool) + len(self._tasks) < limits.FRAMED_POOL:
                self._open(self._pool.add)
        elif not self._tasks and self._opening.wanted():
            self._open(self._pool.add)

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

    def _open(self, use: Callable[[socket.socket], None]) -> None:
        async def work() -> None:
            try:
                use(await opened(self.host, self._hello))
                self._proven = True
            except NowhereError:
                self._not_before = time.monotonic() + limits.CALL_STREAM_AGAIN_S

        task = asyncio.create_task(work(), name="framed connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def retire(self) -> None:
        """Ask nothing more; what was asked is answered."""
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
