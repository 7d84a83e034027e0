"""Attempts to exhaust or confuse a host with streams in frames (SPEC 9.6.3; THREATS H11, H13, C3).

The attacker is anybody who reaches the port, and speaks to a real host before a real enclave.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate import framed, limits
from casemate.errors import CasemateError, Code
from casemate.framed import GREETING_BYTES, Kind
from casemate.frames import ANSWER, ERROR, encode_frame, encode_head, receive_frame
from casemate.v1.confidential_inference_pb2 import Refusal
from tests.support.attacker import (
    GOOD,
    EnclaveSocket,
    Session,
    eventually,
    genuine,
    resident_kib,
    start_session,
)
from tests.support.damage import flip
from tests.support.framed_middle import offer_of
from tests.support.streams import speak

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]
GROWTH_KIB = 48 * 1024


@pytest.fixture(scope="module")
def port(deployment: LocalDeployment) -> int:
    return offer_of(deployment.target).port


@pytest.fixture(scope="module")
def session(deployment: LocalDeployment) -> Session:
    return start_session(deployment)


@pytest.fixture
def enclave(deployment: LocalDeployment) -> EnclaveSocket:
    return genuine(deployment)


@pytest.fixture(autouse=True)
def _bounded(deployment: LocalDeployment, port: int, session: Session) -> Iterator[None]:
    """Afterwards the host holds no more than before, and carries the next stream."""
    assert deployment.host is not None
    pid = deployment.host.pid
    before, held = resident_kib(pid), descriptors(pid)
    yield
    assert eventually(lambda: descriptors(pid) <= held + 8)
    assert resident_kib(pid) - before < GROWTH_KIB
    assert eventually(lambda: carried(port, session))


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def welcomed(port: int) -> socket.socket:
    """A connection on which a stream may begin."""
    channel = socket.create_connection(("127.0.0.1", port), 60)
    channel.recv(GREETING_BYTES, socket.MSG_WAITALL)
    channel.sendall(framed.hello())
    answer = receive_frame(channel)
    assert answer is not None
    assert answer.type == Kind.HELLO | ANSWER
    return channel


def carried(port: int, session: Session) -> bool:
    """Whether a stream of an honest client is carried to its end."""
    with welcomed(port) as channel:
        spoken = speak(channel, session.keys, version=1).begin(GOOD, GOOD)
        spoken.end()
        with contextlib.suppress(CasemateError):  # what is refused is no error of an enclave
            spoken.receive_all()
        return spoken.complete and {unit.trailer.status for unit in spoken.units} == {Code.OK}


def last_words(channel: socket.socket) -> str | None:
    """The reason that the host ends the connection with, if any."""
    reason = None
    with contextlib.suppress(ConnectionError, CasemateError):
        while (frame := receive_frame(channel)) is not None:
            if frame.type == ERROR:
                reason = str(Refusal.FromString(bytes(frame.payload)).reason)
    return reason


GARBAGE = {
    "a request": encode_frame(Kind.REQUEST, b"x"),
    "calls": encode_frame(Kind.MANY, b""),
    "a hello": framed.hello(),
    "an answer": encode_frame(Kind.STREAM | ANSWER, b"x"),
    "a refusal": encode_frame(ERROR, b""),
    "a length of four": struct.pack(">IBI", 4, Kind.STREAM, 0),
    "a length above the bound": encode_head(Kind.STREAM, limits.STREAM_MESSAGE_MAX + 1),
    "the longest length": b"\xff\xff\xff\xff\x04\0\0\0\0",
    "http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "noise": b"\x7f" + random.Random(11).randbytes(5000),
    "zeros": bytes(64),
    "more after the end": encode_frame(Kind.STREAM, b"") * 2,
}


@pytest.mark.parametrize("begun", [False, True])
def test_h11_garbage_within_a_stream_ends_that_stream_alone(
    port: int, enclave: EnclaveSocket, session: Session, begun: bool
) -> None:
    """As the first frame or later; what the enclave runs for the stream is ended."""
    count = ended(enclave)
    with welcomed(port) as bystander:
        beside = speak(bystander, session.keys, version=1).begin(GOOD)
        for what, sent in GARBAGE.items():
            with welcomed(port) as channel:
                if begun:
                    spoken = speak(channel, session.keys, version=1).begin(GOOD)
                    assert spoken.receive()
                elif what in {"a request", "calls", "more after the end"}:
                    continue
                with contextlib.suppress(ConnectionError):
                    channel.sendall(sent)
                assert last_words(channel) in {Code.MALFORMED, Code.TOO_LARGE}, what
        beside.ask(GOOD)
        beside.end()
        assert [unit.trailer.status for unit in beside.receive_all()] == [Code.OK] * 3
    assert eventually(lambda: count() == (len(GARBAGE) if begun else 0))


def ended(enclave: EnclaveSocket) -> Callable[[], int]:
    """What returns how many streams the enclave has ended, since now, that came to no good end."""

    def count() -> int:
        counters = enclave.counters()
        return int(counters["streams_cut"] + counters["streams_refused"])

    before = count()
    return lambda: count() - before


def test_h2_a_question_that_was_touched_ends_with_the_enclaves_refusal(
    port: int, session: Session
) -> None:
    """The host passes on what it cannot judge; what the enclave says of it reaches the client."""
    with welcomed(port) as channel:
        spoken = speak(channel, session.keys, version=1)
        opening, *_ = spoken.call.opening()
        spoken.send([flip(opening, 30)], spoken.call.header)
        assert last_words(channel) == Code.OPEN_FAILED
    with welcomed(port) as channel:
        spoken = speak(channel, session.keys, version=1).begin(GOOD)
        assert spoken.receive()
        spoken.send(flip(chunk, -1) for chunk in spoken.call.question([GOOD]))
        assert last_words(channel) == Code.OPEN_FAILED
    with welcomed(port) as channel:
        channel.sendall(encode_frame(Kind.STREAM, random.Random(3).randbytes(3000)))
        assert last_words(channel) == Code.MALFORMED


@pytest.mark.parametrize("reset", [False, True])
def test_h13_a_stream_that_is_cut_anywhere_ends_in_the_enclave(
    port: int, enclave: EnclaveSocket, session: Session, reset: bool
) -> None:
    tape = _Tape()
    spoken = speak(tape, session.keys, version=1).begin(GOOD)  # type: ignore[arg-type]
    spoken.ask(GOOD)
    spoken.end()
    first, count = tape.first, ended(enclave)
    cuts = (*range(0, 30, 3), *range(first - 1, len(tape.data), (len(tape.data) - first) // 8))
    for at in cuts:
        with welcomed(port) as channel:
            channel.sendall(tape.data[:at])
            if reset:
                linger = struct.pack("ii", 1, 0)
                channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    begun = sum(at >= first for at in cuts)
    assert eventually(lambda: count() <= begun if reset else count() == begun)


class _Tape:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.data = b""
        self.first = 0  # bytes of the first frame

    def sendmsg(self, buffers: list[bytes]) -> int:
        self.data += b"".join(buffers)
        self.first = self.first or len(self.data)
        return sum(map(len, buffers))


def test_c3_streams_that_are_announced_and_never_come_keep_nobody_out(
    deployment: LocalDeployment, port: int, still_serves: Callable[[], None]
) -> None:
    """More than there are places: an honest stream finds one among them all the same."""
    session = start_session(deployment)
    with contextlib.ExitStack() as held:
        for _ in range(limits.INFER_STREAMS_DEFAULT + 20):
            channel = held.enter_context(welcomed(port))
            channel.sendall(encode_head(Kind.STREAM, limits.STREAM_MESSAGE_MAX, 600_000) + b"x")
        still_serves()
        time.sleep(limits.RECEIVE_GRACE_S)
        assert eventually(lambda: carried(port, session), 20)


def test_c3_who_takes_no_answers_is_read_no_further_and_costs_no_memory(
    deployment: LocalDeployment, port: int, session: Session
) -> None:
    """What it does not take waits with it: nobody else keeps more than is bounded."""
    assert deployment.host is not None
    pid = deployment.host.pid
    before = resident_kib(pid)
    with welcomed(port) as channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        channel.settimeout(1)
        spoken = speak(channel, session.keys, version=1)
        spoken.budget = 5000
        spoken.begin(GOOD)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 * limits.MIB:
                chunks = [chunk for _ in range(64) for chunk in spoken.call.question([GOOD])]
                spoken.send(chunks)
                sent += sum(map(len, chunks))
        assert sent < 64 * limits.MIB
        assert resident_kib(pid) - before < 8 * 1024


def test_c3_a_flood_of_streams_that_leave_at_once_costs_nobody_a_place(
    port: int, session: Session, still_serves: Callable[[], None]
) -> None:
    def flood() -> None:
        for index in range(60):
            with contextlib.suppress(ConnectionError), welcomed(port) as channel:
                channel.sendall(encode_frame(Kind.STREAM, bytes(index * 100 + 1))[: index * 90 + 1])

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    still_serves()
    for thread in threads:
        thread.join()
    assert eventually(lambda: carried(port, session))
