"""Both ends of a stream joined without a network, and a stream spoken to an enclave by hand."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from casemate.envelope import opening
from casemate.envelope.header import parse_request_header
from casemate.envelope.messages import Trailer
from casemate.envelope.sealed_chunks import encode_chunk, encode_header, parse_chunks
from casemate.envelope.stream_opening import OpenedStream, StreamAnswer
from casemate.errors import Code
from casemate.frames import ERROR, FrameType, receive_frame, remote_error, send_frame
from casemate.tensors import response_lead
from casemate_devkit.local import MODEL
from tests.support import envelope as env

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from casemate.envelope.sealing import DataKeySession
    from casemate.envelope.streaming import AnswerUnit, SealedStream


def nothing_leads(_head: memoryview) -> int:
    return 0


def seal_stream(session: DataKeySession, *, receipt: bool = False) -> SealedStream:
    return session.seal_stream(
        model="wdbc", version=7, digest=None, receipt=receipt, lead=nothing_leads
    )


def open_stream(
    header: bytes,
    *,
    take: Callable[[int], None] = lambda _size: None,
    lead: Callable[[memoryview], int] = nothing_leads,
) -> OpenedStream:
    """Open as an enclave does, up to the first chunk."""
    parsed = parse_request_header(header)
    prk = opening.check_commitment(parsed, env.unwrap(parsed))
    return OpenedStream(header, prk, take=take, lead=lead)


def trailer(unit: int = 0, *, final: bool = True, status: Code = Code.OK) -> Trailer:
    return Trailer(status, "", "wdbc", 7, b"\xdd" * 48, unit, final)


def asked(opened: OpenedStream, chunks: Iterable[bytes | bytearray]) -> list[bytes]:
    """What an enclave reads in ``chunks``."""
    messages = [one for chunk in chunks for one in opened.questions(memoryview(chunk))]
    return [bytes(message) for message in messages]


def answered(call: SealedStream, chunks: Iterable[bytes | bytearray]) -> list[AnswerUnit]:
    """What a client reads in ``chunks``."""
    units = [call.answer(memoryview(chunk)) for chunk in chunks]
    return [unit for unit in units if unit is not None]


@dataclass
class Ends:
    """A stream with its two sides after the opening, and the answer begun."""

    call: SealedStream
    opened: OpenedStream
    answer: StreamAnswer

    @classmethod
    def of(cls, session: DataKeySession, *, receipt: bool = False) -> Self:
        call = seal_stream(session, receipt=receipt)
        opened = open_stream(call.header)
        (first,) = call.opening()
        opened.open(memoryview(first))
        answer = opened.answer(env.INSTANCE_DIGEST)
        call.begin_answer(answer.header)
        return cls(call, opened, answer)


@dataclass
class Recorded:
    """All chunks of one stream, in both directions, as the host sees them."""

    call: SealedStream
    header: bytes
    questions: list[bytes]
    answer_header: bytes
    answers: list[bytes]


def record(session: DataKeySession, messages: Sequence[bytes], floor: int = 0) -> Recorded:
    """Seal ``messages`` and echo them; the call that is returned has opened nothing yet."""
    call = seal_stream(session)
    questions = [*call.opening()]
    for message in messages:
        questions += call.question([message])
    questions += call.end()
    answer = open_stream(call.header).answer(env.INSTANCE_DIGEST)
    answers: list[bytes] = []
    for unit, message in enumerate(messages):
        answers += map(bytes, answer.unit([[message]], trailer(unit), floor))
    answers += map(bytes, answer.end(trailer(len(messages)), floor))
    return Recorded(
        call, call.header, [bytes(chunk) for chunk in questions], answer.header, answers
    )


@dataclass
class Spoken:
    """A stream spoken frame by frame to an enclave, as a host does, honest or not."""

    channel: socket.socket
    call: SealedStream
    budget: int = 30_000
    units: list[AnswerUnit] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    complete: bool = False
    _begun: bool = False

    def send(self, chunks: Iterable[bytes | bytearray], header: bytes = b"") -> None:
        """Send one message."""
        fields = [encode_header(header)] if header else []
        joined = b"".join(b"".join(field) for field in fields)
        self.send_raw(joined + b"".join(b"".join(encode_chunk(chunk)) for chunk in chunks))

    def send_raw(self, payload: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer says why
            send_frame(self.channel, FrameType.STREAM, payload, self.budget)

    def begin(self, *messages: bytes) -> Self:
        """Send the first message: the header, the opening and questions."""
        chunks = [*self.call.opening()]
        for message in messages:
            chunks += self.call.question([message])
        self.send(chunks, self.call.header)
        return self

    def ask(self, *messages: bytes) -> None:
        """Ask in one unit."""
        self.send(self.call.question(*[[message] for message in messages]))

    def end(self) -> None:
        self.send(self.call.end())
        self.send_raw(b"")

    def receive(self) -> bool:
        """Take the next frame of the answer; False when it is over. Raises FrameError."""
        frame = receive_frame(self.channel)
        if frame is None:
            return False
        if frame.type == ERROR:
            raise remote_error(bytes(frame.payload))
        if not frame.payload:
            self.complete = True
            return False
        self.frames.append(bytes(frame.payload))
        header, chunks = parse_chunks(frame.payload, first=not self._begun)
        if not self._begun:
            self.call.begin_answer(header)
            self._begun = True
        self.units += answered(self.call, map(bytes, chunks))
        return True

    def receive_all(self) -> list[AnswerUnit]:
        while self.receive():
            pass
        return self.units


def speak(
    channel: socket.socket,
    session: DataKeySession,
    *,
    model: str = MODEL,
    version: int | None = None,
    digest: bytes | None = None,
    budget: int = 30_000,
    receipt: bool = False,
) -> Spoken:
    """Begin to speak a stream over ``channel``; nothing is sent yet."""
    sealed = session.seal_stream(
        model=model, version=version, digest=digest, receipt=receipt, lead=response_lead
    )
    return Spoken(channel, sealed, budget)
