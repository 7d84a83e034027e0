"""One stream on a framed connection of its own (SPEC 9.6.3), for event loops."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, TypeAlias

from casemate import limits
from casemate.client.aio_framed_wire import Wire
from casemate.client.call_book import Failure
from casemate.client.framed import refusal_in
from casemate.client.framed_dial import NowhereError, connecting_s, for_stream
from casemate.errors import Code
from casemate.framed import Kind

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from casemate.client.steps import HostStream

    Messages: TypeAlias = AsyncGenerator[bytes, None]
    # Begins the stream by gRPC: its messages, and the seconds that it has.
    Otherwise: TypeAlias = Callable[[Messages, float], HostStream]

_READY_MAX: Final = 256 * limits.KIB  # not taken yet; while there is more nothing is read


class AsyncFramedStream:
    """A stream under way; by gRPC after all if the offer leads nowhere.

    A task of its own connects and sends.
    """

    def __init__(
        self,
        connect: Callable[[float], Awaitable[socket.socket]],
        target: str,
        timeout_s: float,
        over: Callable[[AsyncFramedStream], None],
    ) -> None:
        """Nothing is sent before `begin`.

        ``connect`` gets the seconds that it has, and raises NowhereError or OSError. ``over`` is
        told once nothing of the stream is open any more.
        """
        self._connect = connect
        self._target = target
        self._told_over = over
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + timeout_s
        self._wire: Wire | None = None
        self._otherwise: HostStream | None = None
        self._ready: list[bytes] = []  # of the answer, not taken yet
        self._size = 0
        self._complete = False
        self._failure: Failure | None = None
        self._news: asyncio.Future[None] | None = None  # whoever takes waits for it
        self._room: asyncio.Future[None] | None = None  # the sender does
        late = self._because("no answer before the deadline", Code.DEADLINE_EXCEEDED)
        self._timer = self._loop.call_later(timeout_s, self._end, late)

    def begin(self, messages: Messages, otherwise: Otherwise) -> None:
        """Connect, then take ``messages`` and send each once the host has taken the last."""
        self._sender = asyncio.create_task(self._work(messages, otherwise), name="stream sender")

    async def take(self) -> bytes | None:
        """Return what has come of the answer, None after the last; raises RequestError."""
        while not self._ready:
            if self._failure is not None:
                raise self._failure.error()
            if self._complete:
                return None
            if self._otherwise is not None:
                message: bytes | None = await self._otherwise.take()
                return message
            self._news = self._loop.create_future()
            await self._news
        ready, self._ready, self._size = self._ready, [], 0
        if self._wire is not None:
            self._wire.resume()
        return ready[0] if len(ready) == 1 else b"".join(ready)  # SPEC 9.3.2

    def cancel(self) -> None:
        """End the stream: whoever takes hears so."""
        self._end(self._because("the stream was cancelled"))
        if self._otherwise is not None:
            self._otherwise.cancel()

    async def ended(self) -> None:
        """Wait for the sender, after `cancel`."""
        await asyncio.wait({self._sender})

    def _because(self, why: str, code: Code = Code.UNAVAILABLE) -> Failure:
        return Failure(code, f"{self._target}: {why}")

    def _end(self, failure: Failure | None) -> None:
        """End the connection, complete or not."""
        if self._complete or self._failure is not None or self._otherwise is not None:
            return
        self._failure, self._complete = failure, failure is None
        self._timer.cancel()
        if self._wire is not None:
            self._wire.close()
        self._sender.cancel()
        self._wake()
        self._told_over(self)

    def _wake(self) -> None:
        for waiting in (self._news, self._room):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    # Sending

    async def _work(self, messages: Messages, otherwise: Otherwise) -> None:
        try:
            wire = await self._connected()
            if wire is None:
                self._turn(messages, otherwise)
                return
            async with contextlib.aclosing(messages):
                await self._send(wire, messages)
        except Exception:  # noqa: BLE001 - nothing more can be sent: whoever takes hears of it
            self._end(self._because("the stream cannot go on"))

    async def _connected(self) -> Wire | None:
        try:
            sock = await self._connect(connecting_s(self._until - self._loop.time()))
        except (NowhereError, OSError):
            return None
        for_stream(sock)
        self._wire = Wire(sock, Kind.STREAM, self, limits.STREAM_MESSAGE_MAX)
        return self._wire

    def _turn(self, messages: Messages, otherwise: Otherwise) -> None:
        """Have the stream go by gRPC; the host was asked nothing."""
        self._otherwise = otherwise(messages, self._until - self._loop.time())
        self._timer.cancel()
        self._told_over(self)
        self._wake()

    async def _send(self, wire: Wire, messages: Messages) -> None:
        budget = min(int((self._until - self._loop.time()) * 1000) or 1, limits.FRAME_BUDGET_MAX)
        async for message in messages:
            await self._send_frame(wire, message, budget)
            budget = 0
        await self._send_frame(wire, b"", budget)

    async def _send_frame(self, wire: Wire, message: bytes, budget: int) -> None:
        wire.send(message, budget)
        while wire.sending:
            self._room = self._loop.create_future()
            await self._room

    # Heard

    def heard(self, payload: bytes, *, refused: bool) -> None:
        """Keep what came until it is taken; raises BrokenError."""
        if refused:
            self._end(refusal_in(payload))
            return
        if not payload:
            self._end(None)
            return
        self._ready.append(payload)
        self._size += len(payload)
        if self._size > _READY_MAX and self._wire is not None:
            self._wire.pause()
        self._wake()

    def drained(self) -> None:
        """Go on sending."""
        self._wake()

    def lost(self, why: str) -> None:
        """Fail: what became of the questions is unknown."""
        self._end(self._because(why))
