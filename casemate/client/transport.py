"""gRPC connections to a host that need not be trusted (SPEC 9.5, 9.6), blocking and asynchronous.

Whatever arrives here is the host's word. TLS, where configured, keeps third parties from seeing
sizes and timing; confidentiality does not rest on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

import grpc

from casemate import limits
from casemate.attestation import EvidenceBundle
from casemate.client.access import HostAccess
from casemate.client.aio_call_stream import AsyncCallStreams
from casemate.client.aio_framed import AsyncFramed
from casemate.client.call_stream import METHOD, CallStreams
from casemate.client.framed import offered
from casemate.client.framed_way import FramedWay
from casemate.client.host_words import translated
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.errors import Code, RequestError
from casemate.v1.confidential_inference_pb2 import GetEvidenceRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
    from types import TracebackType

    from casemate.client.steps import HostStream
    from casemate.wire import Buffer

    _Method = grpc.UnaryUnaryMultiCallable[bytes, bytes]
    _StreamMethod = grpc.StreamStreamMultiCallable[bytes, bytes]

_SERVICE: Final = "/casemate.v1.ConfidentialInference/"
_METHODS: Final = ("GetEvidence", "Infer")
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", limits.FRAME_MAX),
    ("grpc.max_send_message_length", limits.FRAME_MAX),
    # One connection for each client, so that a restarted host is found again at once.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", limits.RECONNECT_FIRST_MS),
    ("grpc.max_reconnect_backoff_ms", limits.RECONNECT_MAX_MS),
    # Despite its name: how long one attempt may take, TLS and HTTP/2's greeting included.
    ("grpc.min_reconnect_backoff_ms", limits.CONNECT_MAX_MS),
]


class HostConnection:
    """One gRPC channel for blocking calls, and framed connections where they are offered.

    Thread-safe.
    """

    def __init__(self, target: str, access: HostAccess | None = None) -> None:
        """Connect lazily to ``host:port``; raises RequestError(INVALID_ARGUMENT)."""
        access = access or HostAccess()
        self._channel = access.channel(target, _OPTIONS)
        self._metadata = access.metadata
        self.target = target
        self._methods: dict[str, _Method] = {
            name: self._channel.unary_unary(_SERVICE + name) for name in _METHODS
        }
        self._stream: _StreamMethod = self._channel.stream_stream(_SERVICE + "InferStream")
        self._framed = FramedWay(target, access)
        self._shared = CallStreams(self._channel, self._metadata, target, self._framed)
        self._lock = threading.Lock()
        self._asking = 0  # calls of Infer in frames or on the stream

    def call(self, method: str, request: Buffer, timeout_s: float) -> bytes:
        """Make one unary call, or what is less work: with others on one stream, or in frames.

        Raises RequestError.
        """
        if method == "Infer":
            until = time.monotonic() + timeout_s
            answer = self._ask(request, until)
            if answer is not None:
                return answer
            timeout_s = until - time.monotonic()
        try:
            answer, call = self._methods[method].with_call(
                bytes(request), timeout=timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise translated(error, self.target) from None
        if self._framed.heard(call.trailing_metadata()):
            self._shared.renew()
        return answer

    def _ask(self, request: Buffer, until: float) -> bytes | None:
        """Ask in frames or on the stream of many; None if nothing was asked. Raises RequestError.

        A stream spares calls that meet what each of them costs by itself; one that meets no other
        has less of it on a connection of its own.
        """
        with self._lock:
            alone = not self._asking
            self._asking += 1
        try:
            if len(request) > limits.CALL_STREAM_REQUEST_MAX:
                return self._framed.call(request, until)
            if alone and (self._framed.reached or self._shared.in_frames):
                answer = self._framed.call(request, until, patient=False)
                if answer is not None:
                    return answer
            return self._shared.call(bytes(request), max(0.0, until - time.monotonic()))
        finally:
            with self._lock:
                self._asking -= 1

    def stream(self, messages: Iterator[bytes], timeout_s: float) -> HostStream:
        """Begin a stream of ``messages``, which are taken as fast as the host takes them."""
        framed = self._framed.stream(time.monotonic() + timeout_s)
        if framed is None:
            return self._by_grpc(messages, timeout_s)
        framed.begin(messages, self._by_grpc)
        return framed

    def _by_grpc(self, messages: Iterator[bytes], timeout_s: float) -> HostCall:
        call = self._stream(messages, timeout=timeout_s, metadata=self._metadata)
        return HostCall(call, self.target)

    def get_evidence(
        self, nonce: bytes | None, timeout_s: float, instance: bytes | None = None
    ) -> EvidenceBundle:
        """Fetch evidence, fresh for ``nonce`` or as the host holds it; raises RequestError.

        ``instance``: the H(instance_config) whose evidence is wanted, else UNKNOWN_INSTANCE.
        """
        request = GetEvidenceRequest(nonce=nonce, instance_config_digest=instance)
        return EvidenceBundle.parse(
            self.call("GetEvidence", request.SerializeToString(), timeout_s)
        )

    def infer(
        self, header: bytes, ciphertext: bytes | bytearray | memoryview, timeout_s: float
    ) -> tuple[bytes, memoryview]:
        """Send a sealed request; return the sealed answer's header and ciphertext."""
        request = b"".join(encode_sealed(header, ciphertext))
        return parse_sealed(memoryview(self.call("Infer", request, timeout_s)))

    def close(self) -> None:
        """Close the channel and the framed connections; calls under way fail."""
        self._shared.close()
        self._framed.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class HostCall:
    """A stream under way: the messages of its answer."""

    def __init__(self, call: Any, target: str) -> None:  # noqa: ANN401 - gRPC names no such type
        self._call = call
        self._target = target

    def take(self) -> bytes | None:
        """Return the next message, None after the last; raises RequestError."""
        try:
            message: bytes | None = next(self._call, None)
        except grpc.RpcError as error:
            raise translated(error, self._target) from None
        return message

    def cancel(self) -> None:
        """End the call; whoever takes gets a RequestError."""
        self._call.cancel()


class AsyncHostCall:
    """`HostCall` on an event loop, with the task that sends."""

    def __init__(
        self,
        call: Any,  # noqa: ANN401 - gRPC names no such type
        messages: AsyncGenerator[bytes, None],
        target: str,
    ) -> None:
        self._call = call
        self._target = target
        # The public `write` replaces the status of a call that the host ended meanwhile by INTERNAL
        # (seen in one of twenty refusals, grpcio 1.80): the host's reason would be lost.
        inner = getattr(call, "_cython_call", None)
        self._write = getattr(inner, "send_serialized_message", call.write)
        self._sender = asyncio.create_task(self._send(messages), name="stream sender")

    async def _send(self, messages: AsyncGenerator[bytes, None]) -> None:
        async with contextlib.aclosing(messages):
            try:
                if not await self._done(self._call.wait_for_connection):
                    return
                async for message in messages:
                    if not await self._done(self._write, message):
                        return
                await self._done(self._call.done_writing)
            except Exception:  # noqa: BLE001 - nothing more can be sealed: whoever takes hears of it
                self._call.cancel()

    @staticmethod
    async def _done(act: Callable[..., Awaitable[None]], *arguments: bytes) -> bool:
        """Tell whether ``act`` was done; if not the call is over, and `take` says why."""
        try:
            await act(*arguments)
        except Exception:  # noqa: BLE001 - gRPC has several, of which some are not public
            return False
        return True

    async def take(self) -> bytes | None:
        """As `HostCall.take`."""
        try:
            message = await self._call.read()
        except grpc.RpcError as error:
            raise translated(error, self._target) from None
        except asyncio.CancelledError:
            if self._stops():
                raise
            detail = f"{self._target}: the call was cancelled"
            raise RequestError(Code.UNAVAILABLE, detail) from None
        return None if message is grpc.aio.EOF else message

    @staticmethod
    def _stops() -> bool:
        """Tell whether the task is to stop: gRPC says the same when its channel was closed."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    def cancel(self) -> None:
        """As `HostCall.cancel`."""
        self._call.cancel()
        self._sender.cancel()


class AsyncHostConnection:
    """One gRPC channel for the event loop on which it is first used."""

    def __init__(self, target: str, access: HostAccess | None = None) -> None:
        """Connect lazily, as ``HostConnection``; raises RequestError(INVALID_ARGUMENT)."""
        access = access or HostAccess()
        self._credentials = access.credentials_for(target)
        self._metadata = access.metadata
        self.target = target
        self._channel: grpc.aio.Channel | None = None
        self._framed = AsyncFramed(target, access)
        self._shared = AsyncCallStreams(self._begin, target)
        self._methods: dict[str, Any] = {}
        self._closed = False

    def _opened(self) -> grpc.aio.Channel:
        # Not before a loop runs: the channel belongs to it.
        if self._channel is not None:
            return self._channel
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self.target, options=_OPTIONS)
        else:
            credentials = self._credentials
            self._channel = grpc.aio.secure_channel(self.target, credentials, options=_OPTIONS)
        self._methods = {name: self._channel.unary_unary(_SERVICE + name) for name in _METHODS}
        return self._channel

    def call(self, method: str, request: Buffer, timeout_s: float) -> Coroutine[Any, Any, bytes]:
        """As `HostConnection.call`."""
        shared = self._framed.shared(request, timeout_s) if method == "Infer" else None
        return shared or self._call(method, request, timeout_s)

    async def _call(self, method: str, request: Buffer, timeout_s: float) -> bytes:
        self._opened()
        until = time.monotonic() + timeout_s
        if method == "Infer":
            asked = self._framed.call(request, timeout_s)
            answer = None if asked is None else await asked
            if answer is None and not self._framed.promising:
                answer = await self._shared.call(bytes(request), timeout_s)
            if answer is not None:
                return answer
        left = until - time.monotonic()
        if self._closed:  # while the call waited, or before
            raise RequestError(Code.UNAVAILABLE, f"{self.target}: the client was closed")
        if left <= 0:
            detail = f"{self.target}: no answer before the deadline"
            raise RequestError(Code.DEADLINE_EXCEEDED, detail)
        call = self._methods[method](bytes(request), timeout=left, metadata=self._metadata)
        try:
            by_itself: bytes = await call
            metadata = await call.trailing_metadata()
        except grpc.RpcError as error:
            raise translated(error, self.target) from None
        if method == "GetEvidence" or offered(metadata) is not None:
            self._framed.answer_came(metadata)
        return by_itself

    def stream(self, messages: AsyncGenerator[bytes, None], timeout_s: float) -> HostStream:
        """Begin a stream of ``messages``, which are taken as fast as the host takes them."""
        framed = self._framed.stream(timeout_s)
        if framed is None:
            return self._by_grpc(messages, timeout_s)
        framed.begin(messages, self._by_grpc)
        return framed

    def _by_grpc(self, messages: AsyncGenerator[bytes, None], timeout_s: float) -> AsyncHostCall:
        method: Any = self._opened().stream_stream(_SERVICE + "InferStream")
        call = method(timeout=timeout_s, metadata=self._metadata)
        return AsyncHostCall(call, messages, self.target)

    def _begin(self) -> Any:  # noqa: ANN401 - gRPC names no such type
        method: Any = self._opened().stream_stream(METHOD)
        return method(metadata=self._metadata)

    async def close(self) -> None:
        """Close the channel; calls under way fail."""
        self._closed = True
        await self._framed.close()
        await self._shared.close()
        if self._channel is not None:
            await self._channel.close()
