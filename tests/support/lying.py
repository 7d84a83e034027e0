"""Men in the middle: one between client and host, one between host and enclave.

A test gives each of them a function that decides what becomes of what passes. Unless it lies, both
are transparent.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import grpc

from casemate import framed, numbered
from casemate.channel import UnixAddress, connect, listen
from casemate.errors import FrameError
from casemate.frames import Frame, FrameType, receive_frame, send_frame

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.numbered import Numbered

_SERVICE = "casemate.v1.ConfidentialInference"
_DIAL_S = 10.0

Forward = Callable[[bytes], bytes]
Lie = Callable[[bytes, Forward], bytes]
ForwardStream = Callable[[Iterable[bytes]], Iterator[bytes]]
StreamLie = Callable[[Iterator[bytes], ForwardStream], Iterator[bytes]]
Answer = tuple[int, bytes]
FrameLie = Callable[[int, bytes, Callable[[bytes], Answer]], Answer]


def honest(request: bytes, forward: Forward) -> bytes:
    """Pass a call on unchanged."""
    return forward(request)


def honest_stream(messages: Iterator[bytes], forward: ForwardStream) -> Iterator[bytes]:
    """Pass a stream on unchanged."""
    return forward(messages)


class LyingHost:
    """A host as clients see it; ``evidence``, ``infer`` and ``stream`` are its methods' lies.

    So is ``many``, if there is one: otherwise each question comes as a call of its own. ``offers``
    are the values of the metadata of SPEC 9.6.3 with each evidence, by itself none.
    """

    def __init__(self, target: str, tls: grpc.ServerCredentials | None = None) -> None:
        """Stand in front of the genuine host at ``target``, itself with ``tls`` or without."""
        self.evidence: Lie = honest
        self.infer: Lie = honest
        self.stream: StreamLie = honest_stream
        self.many: StreamLie | None = None
        self.offers: Callable[[], Iterable[str]] = tuple
        self.requests = 0
        self._channel = grpc.insecure_channel(target)
        self._server = grpc.server(ThreadPoolExecutor(8))
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(self._handler(name))
            for name in ("GetEvidence", "Infer")
        }
        handlers["InferStream"] = grpc.stream_stream_rpc_method_handler(self._stream)
        handlers["InferMany"] = grpc.stream_stream_rpc_method_handler(self._many)
        generic = grpc.method_handlers_generic_handler(_SERVICE, handlers)
        self._server.add_generic_rpc_handlers([generic])
        if tls is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", tls)
        self.target = f"127.0.0.1:{port}"
        self._server.start()

    def _handler(self, name: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{_SERVICE}/{name}"
        )

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            if name == "Infer":
                self.requests += 1
            else:
                offers = ((framed.METADATA, each) for each in self.offers())
                context.set_trailing_metadata(tuple(offers))
            lie = self.infer if name == "Infer" else self.evidence
            try:
                return lie(request, lambda message: method(message, timeout=30))
            except grpc.RpcError as error:
                metadata: Any = error.trailing_metadata()
                context.set_trailing_metadata(tuple(metadata or ()))
                context.abort(error.code(), error.details() or "")

        return handle

    def _many(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if self.many is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        yield from self._pass("InferMany", self.many, messages, context)

    def _stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from self._pass("InferStream", self.stream, messages, context)

    def _pass(
        self, name: str, lie: StreamLie, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            f"/{_SERVICE}/{name}"
        )
        try:
            yield from lie(messages, lambda given: iter(method(iter(given), timeout=60)))
        except grpc.RpcError as error:
            metadata: Any = error.trailing_metadata()
            context.set_trailing_metadata(tuple(metadata or ()))
            context.abort(error.code(), error.details() or "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
        self._channel.close()


def honest_frame(kind: int, payload: bytes, forward: Callable[[bytes], Answer]) -> Answer:
    """Pass a frame on unchanged."""
    return forward(payload)


class LyingRelay:
    """Relays frames from the unix socket ``front`` to ``back``, one exchange at a time.

    ``lie`` gets a frame's type and payload, and a function that sends a payload on and returns the
    answer's type and payload. Models are not loaded through it.
    """

    def __init__(self, front: Path, back: Path) -> None:
        self.lie: FrameLie = honest_frame
        self._back = UnixAddress(str(back))
        self._listener = listen(UnixAddress(str(front)))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, name="lying-relay", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with (
            contextlib.suppress(OSError, FrameError),
            near,
            connect(self._back, _DIAL_S) as far,
        ):
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            while (frame := receive_frame(near)) is not None:
                if frame.type == FrameType.NUMBERED:
                    asked = numbered.first(frame)
                    if asked.type == FrameType.CANCEL:
                        continue  # what was given up ends at its deadline
                    threading.Thread(target=self._number, args=(asked, near), daemon=True).start()
                else:
                    kind, payload = self._exchange(frame, far)
                    send_frame(near, kind, payload)

    def _number(self, asked: Numbered, near: socket.socket) -> None:
        """Pass one of many exchanges on over a connection of its own, as a plain frame."""
        with contextlib.suppress(OSError, FrameError), connect(self._back, _DIAL_S) as far:
            far.settimeout(None)
            with self._lock:
                self._open.add(far)
            frame = Frame(asked.type, asked.budget, memoryview(asked.payload))
            try:
                kind, payload = self._exchange(frame, far)
            except OSError:
                near.shutdown(socket.SHUT_RDWR)
                raise
            near.sendall(b"".join(numbered.answer(asked.number, kind, (payload,))))

    def _exchange(self, frame: Frame, far: socket.socket) -> Answer:
        def forward(payload: bytes) -> Answer:
            send_frame(far, frame.type, payload, frame.budget)
            answer = receive_frame(far)
            if answer is None:
                raise ConnectionError("the enclave is gone")
            return answer.type, bytes(answer.payload)

        return self.lie(frame.type, bytes(frame.payload), forward)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
