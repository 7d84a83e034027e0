"""A client's end of a framed connection (SPEC 9.6.3) without a client: it sends what it is told."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple, Self

from prometheus_client import generate_latest

from casemate import framed, frames
from casemate.framed import Kind, Offer
from casemate.frames import ANSWER, ERROR, HEAD_BYTES
from casemate.v1.confidential_inference_pb2 import (
    NumberedRequest,
    Refusal,
    SealedRequests,
    SealedResponses,
)
from tests.support.host_bench import SERVICE, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.host_bench import Bench
    from tests.support.nitro_pki import Chain

_HEAD = struct.Struct(">IBI")
REQUEST_ANSWER = Kind.REQUEST | ANSWER
STREAM_ANSWER = Kind.STREAM | ANSWER
MANY_ANSWER = Kind.MANY | ANSWER
HELLO_ANSWER = Kind.HELLO | ANSWER


class EndedError(Exception):
    """The host has ended the connection; ``refusal``: what it said before, if anything."""

    def __init__(self, refusal: Refusal | None = None) -> None:
        super().__init__(refusal.reason if refusal is not None else "")
        self.refusal = refusal

    @property
    def reason(self) -> str | None:
        return None if self.refusal is None else self.refusal.reason


class Answer(NamedTuple):
    """One frame of the host."""

    kind: int
    payload: bytes

    @property
    def refusal(self) -> Refusal:
        assert self.kind == ERROR, self
        return Refusal.FromString(self.payload)


def offer_of(bench: Bench, method: str = "GetEvidence", request: bytes = b"") -> Offer | None:
    """What the host offers with its evidence, or another answer, asked over gRPC."""
    call = bench.channel.unary_unary(SERVICE + method)
    _, done = call.with_call(request, timeout=60)
    offers = [value for key, value in done.trailing_metadata() if key == framed.METADATA]
    assert len(offers) <= 1
    return Offer.parse(offers[0]) if offers else None


def questions(*payloads: bytes, first: int = 1, budget: int = 100_000) -> bytes:
    """A message that asks all of them, numbered from ``first``."""
    entries = [
        NumberedRequest(number=first + index, budget=budget, request=payload)
        for index, payload in enumerate(payloads)
    ]
    return SealedRequests(requests=entries).SerializeToString()


class RawFramed:
    """One connection; nothing is sent before it is asked for, but the hello."""

    def __init__(
        self, address: str, authorization: str | None = "", *, greeting: bytes | None = None
    ) -> None:
        """``authorization`` None: no hello is sent; ``greeting``: what the host must say first."""
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.refusals: dict[int, Refusal] = {}
        self.asked_to_end = False
        try:
            self.greeting = self.receive_exactly(framed.GREETING_BYTES)
            assert greeting is None or self.greeting == greeting
            if authorization is not None:
                self._say(authorization)
        except BaseException:
            self.close()
            raise

    def _say(self, authorization: str) -> None:
        self.socket.sendall(framed.hello(authorization))
        answer = self.take()
        if answer.kind == ERROR:
            raise EndedError(answer.refusal)
        assert answer == (HELLO_ANSWER, b"")

    def send(self, kind: int, payload: bytes, budget: int = 100_000) -> None:
        self.socket.sendall(frames.encode_frame(kind, payload, budget))

    def receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = self.socket.recv(size - len(data))
            except ConnectionError:
                raise EndedError from None
            if not piece:
                raise EndedError
            data += piece
        return bytes(data)

    def take(self) -> Answer:
        """The host's next frame; raises EndedError."""
        length, kind, _ = _HEAD.unpack(self.receive_exactly(HEAD_BYTES))
        return Answer(kind, self.receive_exactly(length - frames.COUNTED))

    def exchange(self, payload: bytes, budget: int = 100_000) -> bytes | str:
        """Ask one request and return its answer: bytes, or the reason of a refusal."""
        self.send(Kind.REQUEST, payload, budget)
        answer = self.take()
        if answer.kind == ERROR:
            return answer.refusal.reason
        assert answer.kind == REQUEST_ANSWER
        return answer.payload

    def ask(self, *payloads: bytes, first: int = 1, budget: int = 100_000) -> None:
        """Ask all in one message of a stream; see ``questions``."""
        self.send(Kind.MANY, questions(*payloads, first=first, budget=budget), 0)

    def give_up(self, number: int) -> None:
        self.ask(b"", first=number, budget=0)

    def take_message(self) -> list[tuple[int, bytes | str]]:
        """The next message of a stream; raises EndedError."""
        answer = self.take()
        if answer.kind == ERROR:
            raise EndedError(answer.refusal)
        assert answer.kind == MANY_ANSWER
        responses = SealedResponses.FromString(answer.payload)
        self.asked_to_end |= responses.last
        taken: list[tuple[int, bytes | str]] = []
        for entry in responses.responses:
            if entry.HasField("refusal"):
                self.refusals[entry.number] = entry.refusal
                taken.append((entry.number, entry.refusal.reason))
            else:
                taken.append((entry.number, entry.response))
        return taken

    def take_many(self, count: int) -> list[tuple[int, bytes | str]]:
        """The next ``count`` answers as they come."""
        taken: list[tuple[int, bytes | str]] = []
        while len(taken) < count:
            taken += self.take_message()
        assert len(taken) == count, taken
        return taken

    def stream(self, *messages: bytes, budget: int = 100_000) -> None:
        """Ask these messages of one stream."""
        for message in messages:
            self.send(Kind.STREAM, message, budget)

    def take_stream(self) -> list[bytes]:
        """What a stream answers until its end; raises EndedError."""
        taken: list[bytes] = []
        while (answer := self.take()).kind == STREAM_ANSWER:
            if not answer.payload:
                return taken
            taken.append(answer.payload)
        raise EndedError(answer.refusal)

    def ended(self) -> str | None:
        """Wait for the host's end; the reason that it gives, if any."""
        reason = None
        try:
            while True:
                answer = self.take()
                reason = answer.refusal.reason if answer.kind == ERROR else reason
        except EndedError:
            return reason

    def end_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def framed_bench(
    folder: Path, chain: Chain, *, front: str = "", enclave: str = "", frames: str = "127.0.0.1:0"
) -> Iterator[Bench]:
    """A host that takes framed connections; see ``host_bench.serving``."""
    with serving(folder, chain, f'frames = "{frames}"\n{front}', enclave) as bench:
        yield bench


def connect(bench: Bench, authorization: str | None = "") -> RawFramed:
    """Connect to the host's port for frames."""
    address = bench.host.frames_address
    assert address is not None
    return RawFramed(address, authorization)


def page(bench: Bench) -> bytes:
    """The metrics page."""
    return generate_latest(bench.host.metrics.registry)
