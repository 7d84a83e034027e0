"""Small requests of a blocking client on one framed connection, whatever the host does there.

What a stream does by gRPC it does in frames as well: `test_call_stream`.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from casemate import framed, frames, limits
from casemate.client.call_book import BrokenError
from casemate.client.carrier import Kind as CarrierKind
from casemate.client.framed import FramedHost
from casemate.client.framed_buffer import FrameBuffer
from casemate.client.framed_call import FramedCall
from casemate.errors import Code, FrameError, RequestError
from casemate.framed import Kind
from casemate.frames import ANSWER, ERROR
from casemate.v1.confidential_inference_pb2 import (
    NumberedRequest,
    NumberedResponse,
    SealedResponses,
)
from tests.support.attacker import eventually
from tests.support.blocking_connection import SMALL, BlockingConnection
from tests.support.framed_host import FramedDouble, Peer, echo, playing
from tests.support.patience import patiently
from tests.support.threads import Newcomers

if TYPE_CHECKING:
    from collections.abc import Callable

HEARD = Kind.MANY | ANSWER
BOUND = b"x" * limits.CALL_STREAM_REQUEST_MAX


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is refused, and none is given up, because the machine is slow."""
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 600.0)
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 60.0)


class Acting:
    """Answers requests, and does ``act`` in place of answering one that says ``now``."""

    def __init__(self, act: Callable[[FramedDouble, Peer, NumberedRequest], object]) -> None:
        self._act = act
        self.asked: list[NumberedRequest] = []
        self.ends = 0

    def __call__(self, host: FramedDouble, peer: Peer) -> None:
        peer.begin()
        for each in peer.each():
            self.asked.append(each)
            if each.request.startswith(b"now"):
                self._act(host, peer, each)
            elif each.request:
                peer.answer(each)
        self.ends += 1


def test_all_calls_share_one_connection() -> None:
    with playing() as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        for turn in range(20):
            requests = [b"%d %d" % (turn, number) for number in range(32)]
            assert connection.together(requests) == [b"framed:" + each for each in requests]
        assert len(host.peers) == 1


def test_what_the_host_ends_it_with_is_said_to_every_call() -> None:
    def refuse(_: FramedDouble, peer: Peer, __: NumberedRequest) -> None:
        peer.refuse("QUOTA_EXCEEDED", "no\x1b[2J", 1500)

    with playing(Acting(refuse)) as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        with pytest.raises(RequestError) as raised:
            connection.call(b"now")
        assert (raised.value.code, raised.value.retry_after_s) == (Code.QUOTA_EXCEEDED, 1.5)
        assert "\x1b" not in str(raised.value)
        connection.warm(SMALL)
        assert len(host.peers) == 2


def _last_words(peer: Peer, data: bytes) -> None:
    peer.raw(data)
    peer.end_sending()


BREAKS: dict[str, Callable[[Peer], object]] = {
    "another type": lambda peer: peer.send(Kind.REQUEST | ANSWER, b"x"),
    "a type of the client's": lambda peer: peer.send(Kind.MANY, b""),
    "a length too short": lambda peer: peer.raw(b"\0\0\0\4\xa2\0\0\0\0"),
    "a length out of bounds": lambda peer: peer.raw(b"\xff\xff\xff\xff\xa2\0\0\0\0"),
    "what cannot be read": lambda peer: peer.send(HEARD, b"\xff\xff"),
    "a refusal that cannot be read": lambda peer: peer.send(ERROR, b"\xff\xff"),
    "an answer that nobody waits for": lambda peer: peer.answer(NumberedRequest(number=9999)),
    "the end": lambda peer: peer.end_sending(),
    "the end within a head": lambda peer: _last_words(peer, b"\0\0"),
    "the end within a message": lambda peer: _last_words(
        peer, frames.encode_head(HEARD, 1000) + b"part"
    ),
    "a reset": lambda peer: peer.reset(),
}


@pytest.mark.parametrize("how", list(BREAKS))
def test_a_host_that_breaks_the_rules_loses_the_connection(how: str) -> None:
    acting = Acting(lambda _, peer, __: BREAKS[how](peer))
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        assert connection.outcome(b"now") is Code.UNAVAILABLE
        assert connection.outcome(SMALL) in {b"framed:small", b"unary:small"}
        connection.warm(SMALL)
        assert len(host.peers) == 2


def test_an_answer_out_of_the_blue_ends_the_connection_and_fails_no_call() -> None:
    with playing() as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        host.peers[0].answer(NumberedRequest(number=9999))
        # The next call may be the one that hears of it; those after it have answers.
        assert connection.outcome(SMALL) in {b"framed:small", b"unary:small", Code.UNAVAILABLE}
        connection.warm(SMALL)
        assert len(host.peers) == 2


def test_messages_may_come_in_pieces() -> None:
    def dribble(_: FramedDouble, peer: Peer, each: NumberedRequest) -> None:
        answer = NumberedResponse(number=each.number, response=b"in pieces")
        message = SealedResponses(responses=[answer]).SerializeToString()
        for byte in frames.encode_frame(HEARD, message):
            peer.raw(bytes([byte]))

    with playing(Acting(dribble)) as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        for _ in range(3):
            assert connection.call(b"now") == b"in pieces"


def test_long_messages_arrive_whole() -> None:
    def long(_: FramedDouble, peer: Peer, each: NumberedRequest) -> None:
        each.request = b"now" + bytes(5_000_000)
        peer.answer(each)

    with playing(Acting(long)) as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        for _ in range(3):
            assert connection.call(b"now") == b"framed:now" + bytes(5_000_000)
            assert connection.call(SMALL) == b"framed:small"


def deaf(host: FramedDouble, peer: Peer) -> None:
    """Answer ``small``; from the first other request on, read nothing until the test goes on."""
    peer.begin()
    with contextlib.suppress(FrameError):  # the client may end within a frame
        for each in peer.each():
            if each.request != SMALL:
                host.go.wait(60)
            if each.request:
                peer.answer(each)


def test_a_host_that_reads_nothing_holds_no_call_beyond_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("casemate.client.call_stream._STUCK_S", 600.0)
    with playing(deaf) as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        ends = connection.together([BOUND] * 128, 1.0)  # more than both kernels take
        assert ends == [Code.DEADLINE_EXCEEDED] * 128
        host.go.set()


def test_what_the_kernel_did_not_take_is_sent_when_the_host_reads_again() -> None:
    with playing(deaf) as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        with ThreadPoolExecutor(129) as pool:
            held = [pool.submit(connection.call, BOUND) for _ in range(128)]
            stream = connection.connection._shared._stream
            assert stream is not None
            assert eventually(lambda: stream._sending)
            pool.submit(host.go.set)
            assert {each.result(60) for each in held} == {b"framed:" + BOUND}


class Polls:
    """As ``select.poll()``, once ``before`` was done."""

    def __init__(self, before: Callable[[], object], poll: select.poll) -> None:
        self._before = before
        self._poll = poll
        self.register = poll.register

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self._before()
        return self._poll.poll(timeout)


def test_who_reads_does_not_report_as_sent_what_its_sender_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else another message would take the place of the rest of the one sent meanwhile."""
    polls = threading.Event()
    with playing() as host, ThreadPoolExecutor(1) as pool:
        assert host.offer is not None
        call = FramedCall(FramedHost("127.0.0.1", host.offer), framed.hello(""))
        assert call.poll().kind is CarrierKind.MESSAGE
        flush = call._flush

        def flush_late(channel: socket.socket) -> bool:
            assert polls.wait(60)
            return flush(channel)

        monkeypatch.setattr(call, "_flush", flush_late)
        sending = pool.submit(call.send, b"")
        assert eventually(lambda: bool(call._unsent))

        def sent_meanwhile() -> None:
            polls.set()
            assert sending.result(60) is False  # nothing waits: no SENT follows

        monkeypatch.setattr(select, "poll", partial(Polls, sent_meanwhile, select.poll()))
        assert call.poll().kind is not CarrierKind.SENT
        call.cancel()
        assert eventually(lambda: call.poll().kind is CarrierKind.ENDED)


def test_a_host_that_takes_nothing_for_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAMED_READ_S", 0.5)
    with playing(deaf) as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        with monkeypatch.context() as patched:
            patched.setattr(limits, "CALL_STREAM_AFTER", 1000)  # no other connection meanwhile
            ends = connection.together([BOUND] * 128, 60.0)
        assert Code.UNAVAILABLE in ends
        # Whoever asks after its end does so by gRPC: 128 threads may take longer to begin.
        assert set(ends) <= {Code.UNAVAILABLE, b"unary:" + BOUND}
        host.script = echo
        connection.warm(SMALL)


def test_a_question_that_is_given_up_is_told_to_the_host() -> None:
    acting = Acting(lambda *_: None)
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)

        def asked() -> list[int]:
            return [each.number for each in acting.asked if each.request == b"now"]

        def given_up(within_s: float) -> bool:
            """Whether it came as far as to be sent."""
            assert connection.outcome(b"now", within_s) is Code.DEADLINE_EXCEEDED
            return eventually(lambda: bool(asked()), 1)

        assert patiently(given_up, bool)
        assert connection.call(SMALL) == b"framed:small"
        (dropped,) = asked()
        assert [each.request for each in acting.asked if each.number == dropped] == [b"now", b""]


def test_a_call_whose_wait_goes_on_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where signals, each of which has the kernel's time begin anew, come all the time."""
    long = struct.pack("@ll", 600, 0)
    monkeypatch.setattr("casemate.client.framed_call._TIMEVAL", long)
    acting = Acting(lambda *_: None)
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(connection.outcome, b"now", 0.5)
            done = eventually(waiting.done)
            with contextlib.suppress(OSError):  # the client has ended it
                host.peers[0].sock.shutdown(socket.SHUT_RDWR)
            assert done
            assert waiting.result() in {Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE}


def test_when_the_host_wants_it_ended_what_is_under_way_is_answered_first() -> None:
    """On a framed connection the client's end would cancel it: so it comes afterwards."""
    held: list[NumberedRequest] = []

    def last(_: FramedDouble, peer: Peer, each: NumberedRequest) -> None:
        held.append(each)
        if len(held) == 2:
            peer.answer(last=True)
            peer.answer(*held)

    acting = Acting(last)
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        assert connection.together([b"now 1", b"now 2"]) == [b"framed:now 1", b"framed:now 2"]
        assert eventually(lambda: acting.ends == 1)
        connection.warm(SMALL)
        assert len(host.peers) == 2


def test_closing_fails_what_is_under_way_and_leaves_nothing_open() -> None:
    waiting = threading.Event()
    acting = Acting(lambda *_: waiting.set())
    threads = Newcomers()
    with playing(acting) as host:
        connection = BlockingConnection(host.target)
        connection.warm(SMALL)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(connection.outcome, b"now")
            assert waiting.wait(60)
            connection.close()
            assert held.result() is Code.UNAVAILABLE
        assert eventually(lambda: acting.ends == 1)
        assert eventually(lambda: "call-stream" not in threads.names())


def test_an_interrupted_call_ends_the_connection() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    main = threading.main_thread().ident
    assert main is not None
    acting = Acting(lambda *_: signal.pthread_kill(main, signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with playing(acting) as host, BlockingConnection(host.target) as connection:
            connection.warm(SMALL)
            with pytest.raises(KeyboardInterrupt):
                connection.call(b"now")
            assert eventually(lambda: acting.ends == 1)
            connection.warm(SMALL)
    finally:
        signal.signal(signal.SIGUSR1, before)


MESSAGES = [b"", b"one", bytes(3000), b"\x00\xff"]


@pytest.mark.parametrize("step", [1, 2, 8, 9, 10, 1000, 10_000])
def test_frames_are_found_however_their_bytes_arrive(step: int) -> None:
    data = b"".join(frames.encode_frame(HEARD, each) for each in MESSAGES)
    data += frames.encode_frame(ERROR, b"no")
    buffer = FrameBuffer(HEARD)
    found = []
    for at in range(0, len(data), step):
        buffer.add(data[at : at + step])
        while (frame := buffer.take()) is not None:
            found.append(frame)
    assert found == [*((False, each) for each in MESSAGES), (True, b"no")]
    assert buffer.missing == 0


def test_what_a_frame_lacks_is_known_from_its_head() -> None:
    buffer = FrameBuffer(HEARD)
    buffer.add(frames.encode_frame(HEARD, b"first") + frames.encode_head(HEARD, 1000)[:8])
    assert buffer.take() == (False, b"first")
    assert buffer.missing == 0
    buffer.add(b"\0")
    assert (buffer.take(), buffer.missing) == (None, 1000)
    buffer.add(bytes(400))
    assert (buffer.take(), buffer.missing) == (None, 600)


@pytest.mark.parametrize(
    "head",
    [
        b"\0\0\0\4\xa2\0\0\0\0",
        (limits.FRAME_MAX + 1).to_bytes(4, "big") + b"\xa2\0\0\0\0",
        b"\0\0\0\5\x83\0\0\0\0",
        b"\0\0\0\5\x22\0\0\0\0",
    ],
)
def test_another_frame_is_refused_by_its_head(head: bytes) -> None:
    buffer = FrameBuffer(HEARD)
    buffer.add(head)
    with pytest.raises(BrokenError):
        buffer.take()
