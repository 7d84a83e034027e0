"""`call_stream` for event loops: calls of many tasks on one stream to a host (SPEC 9.6.2)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc

from casemate import limits
from casemate.client.aio_call_book import AsyncCallBook
from casemate.client.call_book import BrokenError, Failure
from casemate.client.call_stream import Opening
from casemate.client.host_words import translated
from casemate.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable


class AsyncCallStreams:
    """The stream of one channel, made anew when it has ended; for one event loop."""

    def __init__(self, begin: Callable[[], Any], target: str) -> None:
        """``begin`` a call of `InferMany`."""
        self._begin = begin
        self._target = target
        self._opening = Opening()
        self._stream: _CallStream | None = None

    async def call(self, request: bytes, timeout_s: float) -> bytes | None:
        """Return the answer; None if the call is to be made by itself.

        Raises RequestError, as a call that is made by itself.
        """
        if len(request) > limits.CALL_STREAM_REQUEST_MAX:
            return None
        if self._stream is not None:
            return await self._stream.call(request, timeout_s)
        if self._opening.wanted():
            self._stream = _CallStream(self._begin(), self._target, self._ended)
        return None

    async def close(self) -> None:
        """End the stream; calls under way fail."""
        if self._stream is not None:
            await self._stream.close()

    def _ended(self, refusal: grpc.StatusCode | None) -> None:
        self._stream = None
        self._opening.over(refusal)


class _CallStream:
    """One stream: a task reads, another sends what waits."""

    def __init__(
        self,
        call: Any,  # noqa: ANN401 - gRPC names no such type
        target: str,
        ended: Callable[[grpc.StatusCode | None], None],
    ) -> None:
        self._call = call
        # As `AsyncHostCall`: the public `write` may hide why the host ended the call.
        inner = getattr(call, "_cython_call", None)
        self._write = getattr(inner, "send_serialized_message", call.write)
        self._target = target
        self._ended = ended
        self._waiting = asyncio.Event()  # to be sent
        self._book = AsyncCallBook(target, self._waiting.set)
        self._taking = False  # questions
        self._task = asyncio.create_task(self._run(), name="call stream")

    async def call(self, request: bytes, timeout_s: float) -> bytes | None:
        """As `AsyncCallStreams.call`."""
        if not self._taking:
            return None
        return await self._book.call(request, timeout_s)

    async def close(self) -> None:
        """End the call and its tasks; questions under way fail."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        refusal: grpc.StatusCode | None = None
        failure = Failure(Code.UNAVAILABLE, f"{self._target}: the client was closed")
        sender: asyncio.Task[None] | None = None
        try:
            # Nothing is sent before the host's first message.
            message = await self._call.read()
            self._taking = message is not grpc.aio.EOF
            sender = asyncio.create_task(self._send(), name="call stream sender")
            while message is not grpc.aio.EOF:
                if self._book.answered(message):
                    self._taking = False
                    self._waiting.set()
                message = await self._call.read()
            detail = f"{self._target}: the stream ended before the answer"
            failure = Failure(Code.UNAVAILABLE, detail)
        except BrokenError as error:
            detail = f"{self._target}: the host broke the rules of a stream: {error}"
            failure = Failure(Code.UNAVAILABLE, detail)
        except grpc.RpcError as error:
            failure = Failure.of(translated(error, self._target))
            refusal = error.code() if sender is None else None
        finally:
            self._taking = False
            self._call.cancel()
            if sender is not None:
                sender.cancel()
            self._book.fail(failure)
            self._ended(refusal)

    async def _send(self) -> None:
        # Whatever fails here ends the call, and reading tells why.
        with contextlib.suppress(Exception):
            while True:
                while message := self._book.next_message():
                    await self._write(message)
                if not self._taking:
                    await self._call.done_writing()
                    return
                self._waiting.clear()
                await self._waiting.wait()
