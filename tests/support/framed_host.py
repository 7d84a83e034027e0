"""A host of framed connections that does what a test says (SPEC 9.6.3), honest or not.

Beside it a gRPC service makes the offer and takes the calls that are made by themselves.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from casemate import frames
from casemate.framed import METADATA, Kind, Offer
from casemate.frames import ANSWER, ERROR, Frame
from casemate.v1.confidential_inference_pb2 import (
    NumberedRequest,
    NumberedResponse,
    Refusal,
    SealedRequests,
    SealedResponses,
)

STREAM_ANSWER = Kind.STREAM | ANSWER
Script = Callable[["FramedDouble", "Peer"], None]


@dataclass
class Peer:
    """The host's end of one connection."""

    sock: socket.socket
    offer: Offer

    def begin(self) -> bytes:
        """Greet as the host that made the offer, welcome the client and return its hello."""
        self.sock.sendall(self.offer.greeting)
        hello = self.take()
        if hello is None:
            raise ConnectionError
        assert hello.type == Kind.HELLO
        self.send(Kind.HELLO | ANSWER)
        return bytes(hello.payload)

    def take(self) -> Frame | None:
        """The next frame; None at the client's end."""
        try:
            return frames.receive_frame(self.sock)
        except ConnectionError:
            return None

    def each(self) -> Iterator[NumberedRequest]:
        """What the client asks and gives up, in one type 34 frame after the other."""
        while (frame := self.take()) is not None:
            assert frame.type == Kind.MANY
            yield from SealedRequests.FromString(bytes(frame.payload)).requests

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send a frame, unless the client is gone."""
        self.raw(frames.encode_frame(kind, payload))

    def raw(self, data: bytes) -> None:
        """Send bytes, unless the client is gone."""
        with contextlib.suppress(OSError):
            self.sock.sendall(data)

    def answer(self, *requests: NumberedRequest, last: bool = False) -> None:
        """Answer ``framed:`` and the request, all in one message."""
        answers = [
            NumberedResponse(number=each.number, response=b"framed:" + each.request)
            for each in requests
        ]
        message = SealedResponses(responses=answers, last=last)
        self.send(Kind.MANY | ANSWER, message.SerializeToString())

    def echo(self, frame: Frame) -> None:
        """Answer all that a frame asks."""
        if frame.type == Kind.MANY:
            asked = SealedRequests.FromString(bytes(frame.payload)).requests
            self.answer(*(each for each in asked if each.request))
        elif frame.type == Kind.STREAM:
            self.send(STREAM_ANSWER, b"framed:" + frame.payload if frame.payload else b"")
        else:
            self.send(Kind.REQUEST | ANSWER, b"framed:" + frame.payload)

    def refuse(self, reason: str, detail: str = "no", delay: int = 0) -> None:
        """Answer ``0xff``."""
        refusal = Refusal(reason=reason, detail=detail, retry_delay=delay)
        self.send(ERROR, refusal.SerializeToString())

    def end_sending(self) -> None:
        """Say no more, unless the client is gone."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection as a host that was killed with unread bytes."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def at_end(self) -> bytes:
        """All that the client still sends until it ends the connection."""
        heard = b""
        with contextlib.suppress(ConnectionError):
            while piece := self.sock.recv(1 << 16):
                heard += piece
        return heard


def echo(_: FramedDouble, peer: Peer) -> None:
    """Answer everything with ``framed:`` before it."""
    peer.begin()
    while (frame := peer.take()) is not None:
        peer.echo(frame)


@dataclass
class FramedDouble:
    """Plays ``script`` on each framed connection; `Infer` answers ``unary:`` and the request."""

    script: Script = echo
    target: str = ""
    offer: Offer | None = None
    offered: str | None = None  # the metadata, if other than ``offer`` says
    peers: list[Peer] = field(default_factory=list)
    insists: bool = False  # on its offer, in answers to `Infer`, too
    unary: int = 0
    streams: int = 0
    infer_streams: int = 0
    go: threading.Event = field(default_factory=threading.Event)  # set at the end
    faults: list[BaseException] = field(default_factory=list)

    def _get_evidence(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        text = self.offered if self.offered is not None else self.offer and self.offer.text
        context.set_trailing_metadata(((METADATA, text),) if text else ())
        return request

    def _infer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.unary += 1
        if self.insists:
            self._get_evidence(request, context)
        return b"unary:" + request

    def _infer_many(self, messages: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        self.streams += 1
        yield b""
        for message in messages:
            requests = SealedRequests.FromString(message).requests
            answers = [
                NumberedResponse(number=each.number, response=b"joined:" + each.request)
                for each in requests
                if each.request
            ]
            yield SealedResponses(responses=answers).SerializeToString()

    def _infer_stream(self, messages: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        self.infer_streams += 1
        for message in messages:
            yield b"grpc:" + message

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        """The gRPC service."""
        return {
            "GetEvidence": grpc.unary_unary_rpc_method_handler(self._get_evidence),
            "Infer": grpc.unary_unary_rpc_method_handler(self._infer),
            "InferMany": grpc.stream_stream_rpc_method_handler(self._infer_many),
            "InferStream": grpc.stream_stream_rpc_method_handler(self._infer_stream),
        }

    def play(self, sock: socket.socket) -> None:
        """Play the script; an assertion that fails in it fails the test."""
        assert self.offer is not None
        peer = Peer(sock, self.offer)
        self.peers.append(peer)
        with sock:
            try:
                self.script(self, peer)
            except OSError:
                pass  # the client is gone
            except BaseException as error:  # noqa: BLE001 - told by `playing`
                self.faults.append(error)


@contextlib.contextmanager
def playing(script: Script = echo, host: str = "127.0.0.1") -> Iterator[FramedDouble]:
    """A host that offers framed connections; raises what failed in its scripts."""
    double = FramedDouble(script)
    with _service(double, host), listening(double, host):
        yield double
    for fault in double.faults:
        raise fault


@contextlib.contextmanager
def _service(double: FramedDouble, host: str) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(16))
    name = "casemate.v1.ConfidentialInference"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, double.handlers())])
    double.target = f"{host}:{server.add_insecure_port(f'{host}:0')}"
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def listening(double: FramedDouble, host: str = "127.0.0.1") -> Iterator[None]:
    """Take framed connections at a port of their own, which ``double`` offers from now on."""
    listener = socket.create_server((host, 0), backlog=64)
    double.offer = Offer.new(listener.getsockname()[1])
    threads: list[threading.Thread] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock: Any = listener.accept()[0]
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=double.play, args=(sock,), daemon=True)
                threads.append(thread)
                thread.start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield
    finally:
        double.go.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(60)
        for peer in list(double.peers):
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
