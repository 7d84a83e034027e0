"""Large requests of a blocking client on connections of their own, whatever the host does there."""

from __future__ import annotations

import select
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from casemate import frames, limits
from casemate.client.framed_dial import Dial
from casemate.errors import Code, RequestError
from casemate.framed import Kind
from casemate.frames import ANSWER, Frame
from tests.support.attacker import eventually
from tests.support.blocking_connection import LARGE, SMALL, BlockingConnection, signals_every
from tests.support.framed_host import FramedDouble, Peer, playing
from tests.support.patience import patiently
from tests.support.threads import Newcomers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEARD = Kind.REQUEST | ANSWER


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is refused, and none is given up, because the machine is slow."""
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 600.0)
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 60.0)


def asking(how: str) -> bytes:
    """A large request that tells the host what to do."""
    return how.encode().ljust(len(LARGE), b".")


class Acting:
    """Answers requests, and does ``act`` in place of answering the one that says ``now``."""

    def __init__(self, act: Callable[[FramedDouble, Peer], object]) -> None:
        self._act = act
        self.asked: list[Frame] = []
        self.ends = 0

    def __call__(self, host: FramedDouble, peer: Peer) -> None:
        peer.begin()
        while (frame := peer.take()) is not None:
            self.asked.append(frame)
            if bytes(frame.payload).startswith(b"now"):
                self._act(host, peer)
            else:
                peer.send(HEARD, b"framed:" + frame.payload)
        self.ends += 1

    def count(self, request: bytes) -> int:
        """How often ``request`` was asked."""
        return [bytes(frame.payload) for frame in self.asked].count(request)


def test_one_connection_serves_one_call_after_the_other() -> None:
    with playing() as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        for number in range(20):
            request = asking(str(number))
            assert connection.call(request) == b"framed:" + request
        assert len(host.peers) == 1
        assert connection.call(SMALL) == b"unary:small"


def test_calls_at_the_same_time_have_a_connection_each_and_no_more_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "FRAMED_POOL", 8)
    together = threading.Barrier(8)

    def wait(_: FramedDouble, peer: Peer) -> None:
        together.wait(60)
        peer.send(HEARD, b"at the same time")

    with playing(Acting(wait)) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        with ThreadPoolExecutor(8) as pool:
            held = [pool.submit(connection.outcome, asking(f"now {n}")) for n in range(7)]
            assert eventually(lambda: together.n_waiting == 7)
            assert len(host.peers) == 7
            held.append(pool.submit(connection.outcome, asking("now 7")))
            assert {each.result() for each in held} == {b"at the same time"}
        assert len(host.peers) == 8


def test_a_call_beyond_them_is_made_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAMED_POOL", 1)
    waiting = threading.Event()

    def wait(_: FramedDouble, peer: Peer) -> None:
        waiting.set()
        going.wait(60)
        peer.send(HEARD, b"late")

    going = threading.Event()
    with playing(Acting(wait)) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(connection.call, asking("now"))
            assert waiting.wait(60)
            assert connection.call(LARGE) == b"unary:" + LARGE
            going.set()
            assert held.result() == b"late"
        assert connection.call(LARGE) == b"framed:" + LARGE
        assert len(host.peers) == 1


def test_many_threads_each_get_their_own_answers() -> None:
    with playing() as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        for turn in range(5):
            requests = [asking(f"{turn} {number}") for number in range(32)]
            ends = connection.together(requests)
            for request, end in zip(requests, ends, strict=True):
                assert end in {b"framed:" + request, b"unary:" + request}
        assert len(host.peers) <= limits.FRAMED_POOL


def test_the_budget_is_what_is_left_of_the_deadline() -> None:
    acting = Acting(lambda _, peer: peer.send(HEARD))
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        connection.call(asking("a"), 40)
        connection.call(asking("b"), 100_000)
        connection.call(asking("c"), 365 * 86_400.0)
    budgets = [each.budget for each in acting.asked[-3:]]
    assert 20_000 < budgets[0] <= 40_000
    assert budgets[1:] == [limits.FRAME_BUDGET_MAX] * 2


def test_a_call_ends_at_its_deadline_and_with_it_the_connection() -> None:
    acting = Acting(lambda *_: None)
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)

        def ends(within_s: float) -> bool:
            """Whether it came as far as to be sent."""
            assert connection.outcome(asking("now"), within_s) is Code.DEADLINE_EXCEEDED
            return eventually(lambda: acting.count(asking("now")) > 0, 1)

        assert patiently(ends, bool)
        assert eventually(lambda: acting.ends == 1)
        connection.warm(LARGE)
        assert len(host.peers) == 2


def test_signals_do_not_prolong_a_deadline() -> None:
    acting = Acting(lambda *_: None)
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        with signals_every(0.02):
            assert connection.outcome(asking("now"), 0.5) is Code.DEADLINE_EXCEEDED


def test_a_deadline_that_is_over_sends_nothing() -> None:
    acting = Acting(lambda *_: None)
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        assert connection.outcome(asking("never sent"), 0.0) is Code.DEADLINE_EXCEEDED
        assert acting.count(asking("never sent")) == 0


def test_an_answer_that_drips_ends_at_the_deadline() -> None:
    def drip(host: FramedDouble, peer: Peer) -> None:
        peer.raw(frames.encode_head(HEARD, 1 << 20))
        while not host.go.wait(0.01):
            peer.sock.sendall(b".")

    with playing(Acting(drip)) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        assert connection.outcome(asking("now"), 0.5) is Code.DEADLINE_EXCEEDED


def test_a_host_that_reads_nothing_holds_no_call_beyond_its_deadline() -> None:
    huge = b"huge".ljust(limits.REQUEST_MAX, b".")  # no buffer of the kernel takes it

    def deaf(host: FramedDouble, peer: Peer) -> None:
        peer.begin()
        first = peer.take()
        assert first is not None
        peer.send(HEARD, b"framed:" + first.payload)
        host.go.wait(100)

    with playing(deaf) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        assert connection.outcome(huge, 0.5) is Code.DEADLINE_EXCEEDED
        connection.warm(LARGE)


@pytest.mark.parametrize("size", [0, 1, 8183, 8184, 100_000, 3_000_000])
def test_answers_of_any_size_arrive_whole(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    acting = Acting(lambda _, peer: peer.send(HEARD, body))
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        for _ in range(3):
            assert connection.call(asking("now")) == body
            assert connection.call(LARGE) == b"framed:" + LARGE
        assert len(host.peers) == 1


def test_an_answer_may_come_in_pieces() -> None:
    def dribble(_: FramedDouble, peer: Peer) -> None:
        for byte in frames.encode_frame(HEARD, b"in pieces"):
            peer.raw(bytes([byte]))

    with playing(Acting(dribble)) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        assert connection.call(asking("now")) == b"in pieces"


def test_a_refusal_is_an_error_and_the_connection_goes_on() -> None:
    acting = Acting(lambda _, peer: peer.refuse("OVERLOADED", "no\x1b[2J", 1500))
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        with pytest.raises(RequestError) as raised:
            connection.call(asking("now"))
        assert (raised.value.code, raised.value.retry_after_s) == (Code.OVERLOADED, 1.5)
        assert "\x1b" not in str(raised.value)
        assert connection.call(LARGE) == b"framed:" + LARGE
        assert len(host.peers) == 1


def _last_words(peer: Peer, data: bytes) -> None:
    peer.raw(data)
    peer.end_sending()


BREAKS: dict[str, Callable[[Peer], object]] = {
    "another type": lambda peer: peer.send(Kind.MANY | ANSWER, b"x"),
    "a type of the client's": lambda peer: peer.send(Kind.REQUEST, b"x"),
    "a hello": lambda peer: peer.raw(peer.offer.greeting),
    "a length too short": lambda peer: peer.raw(b"\0\0\0\4\x83\0\0\0\0"),
    "a length out of bounds": lambda peer: peer.raw(b"\xff\xff\xff\xff\x83\0\0\0\0"),
    "a length just out of bounds": lambda peer: peer.raw(
        (limits.FRAME_MAX + 1).to_bytes(4, "big") + b"\x83\0\0\0\0"
    ),
    "a refusal that cannot be read": lambda peer: peer.send(frames.ERROR, b"\xff\xff"),
    "the end": lambda peer: peer.end_sending(),
    "the end within a head": lambda peer: _last_words(peer, b"\0\0"),
    "the end within an answer": lambda peer: _last_words(
        peer, frames.encode_head(HEARD, 1000) + b"part"
    ),
    "a reset": lambda peer: peer.reset(),
}


@pytest.mark.parametrize("how", list(BREAKS))
def test_a_host_that_breaks_the_rules_loses_the_connection(how: str) -> None:
    with (
        playing(Acting(lambda _, peer: BREAKS[how](peer))) as host,
        BlockingConnection(host.target) as connection,
    ):
        connection.warm(LARGE)
        assert connection.outcome(asking("now")) is Code.UNAVAILABLE
        assert connection.outcome(LARGE) in {b"framed:" + LARGE, b"unary:" + LARGE}
        connection.warm(LARGE)
        assert len(host.peers) == 2


def test_a_connection_that_ended_while_idle_repeats_nothing() -> None:
    acting = Acting(lambda *_: None)
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        host.peers[0].sock.shutdown(socket.SHUT_RDWR)
        assert eventually(lambda: acting.ends == 1)
        request, calls = asking("once"), host.unary
        assert connection.call(request) in {b"framed:" + request, b"unary:" + request}
        assert acting.count(request) + host.unary - calls == 1


def test_a_connection_that_dies_before_a_byte_left_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ended between the look and the request, which is then asked elsewhere."""
    acting = Acting(lambda *_: None)
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        (idle,) = connection.connection._framed._pool._idle
        idle.cut()
        monkeypatch.setattr("casemate.client.framed_exchange.Exchanges.quiet", True)
        request, calls = asking("once"), host.unary
        assert connection.call(request) == b"unary:" + request
        assert acting.count(request) + host.unary - calls == 1


@pytest.mark.parametrize("last", ["large", "short"])
def test_of_two_answers_the_second_is_nobodys(last: str) -> None:
    def act(_: FramedDouble, peer: Peer) -> None:
        if acting.count(asking("now")) > 1:
            peer.raw(frames.encode_frame(HEARD, b"first") + frames.encode_frame(HEARD, b"second"))
        else:
            peer.send(HEARD, b"short")

    acting = Acting(act)
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        assert connection.call(asking("now")) == b"short"
        if last == "large":
            assert connection.call(LARGE) == b"framed:" + LARGE
        assert connection.outcome(asking("now")) in {b"first", Code.UNAVAILABLE}
        connection.warm(LARGE)
        assert len(host.peers) == 2


def test_an_answer_out_of_the_blue_is_nobodys() -> None:
    with playing() as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        host.peers[0].send(HEARD, b"unasked")
        assert connection.call(LARGE) == b"framed:" + LARGE
        assert len(host.peers) == 2


def test_a_connection_that_was_idle_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with playing() as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        monkeypatch.setattr(limits, "FRAMED_POOL_IDLE_S", -1.0)
        assert connection.call(LARGE) == b"framed:" + LARGE
        assert len(host.peers) == 2


def test_when_new_connections_are_refused_the_old_ones_serve() -> None:
    waiting = threading.Event()

    def refuse(_: FramedDouble, peer: Peer) -> None:
        peer.raw(peer.offer.greeting)
        peer.refuse("OVERLOADED")

    def wait(_: FramedDouble, peer: Peer) -> None:
        waiting.set()
        going.wait(60)
        peer.send(HEARD, b"late")

    going = threading.Event()
    with playing(Acting(wait)) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        host.script = refuse
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(connection.call, asking("now"))
            assert waiting.wait(60)
            for _ in range(5):
                assert connection.call(LARGE) == b"unary:" + LARGE
            assert len(host.peers) == 2
            going.set()
            assert held.result() == b"late"
        assert connection.call(LARGE) == b"framed:" + LARGE


def test_a_call_without_time_for_a_connection_ends_in_time_and_blames_nobody() -> None:
    waiting, going = threading.Event(), threading.Event()

    def wait(_: FramedDouble, peer: Peer) -> None:
        waiting.set()
        going.wait(60)
        peer.send(HEARD, b"late")

    def mute(host: FramedDouble, _: Peer) -> None:
        host.go.wait(100)

    with playing(Acting(wait)) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(connection.call, asking("now"))
            assert waiting.wait(60)
            calls, host.script = host.unary, mute

            def ends(within_s: float) -> bool:
                """Whether it came as far as to ask for a connection."""
                assert connection.outcome(LARGE, within_s) is Code.DEADLINE_EXCEEDED
                return eventually(lambda: len(host.peers) > 1, 1)

            assert patiently(ends, bool)
            assert host.unary == calls
            host.script = Acting(lambda *_: None)
            assert connection.call(LARGE) == b"framed:" + LARGE
            going.set()
            assert held.result() == b"late"


def test_a_host_that_resets_after_its_welcome_is_left_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect = Dial.connect

    def late(dial: Dial, within_s: float) -> socket.socket:
        """Go on when the reset has arrived."""
        channel = connect(dial, within_s)
        ended = select.poll()
        ended.register(channel, 0)
        assert ended.poll(60_000)
        return channel

    def reset(_: FramedDouble, peer: Peer) -> None:
        peer.begin()
        peer.reset()

    monkeypatch.setattr(Dial, "connect", late)
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 0.0)
    with playing(reset) as host, BlockingConnection(host.target) as connection:
        assert eventually(
            lambda: connection.call(LARGE) == b"unary:" + LARGE and len(host.peers) > 2
        )


def test_without_a_thread_to_spare_calls_are_made_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name != "framed-connect":  # the host's, in this process
            return start(thread)
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    with playing() as host, BlockingConnection(host.target) as connection:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            for _ in range(3):
                assert connection.call(LARGE) == b"unary:" + LARGE
        assert len(refused) == 1  # and is not tried again at once
        assert host.peers == []


def test_closing_fails_what_is_under_way_and_leaves_nothing_open() -> None:
    waiting = threading.Event()

    def wait(_: FramedDouble, peer: Peer) -> None:
        waiting.set()

    acting = Acting(wait)
    threads = Newcomers()
    with playing(acting) as host:
        connection = BlockingConnection(host.target)
        connection.warm(LARGE)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(connection.outcome, asking("now"))
            assert waiting.wait(60)
            connection.close()
            assert held.result() is Code.UNAVAILABLE
        assert eventually(lambda: acting.ends == 1)
        assert "framed-connect" not in threads.names()


@pytest.fixture
def interrupting() -> Iterator[Callable[[], None]]:
    """Has a handler of the main thread raise KeyboardInterrupt."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.main_thread().ident
    assert main is not None
    yield lambda: signal.pthread_kill(main, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_an_interrupted_call_ends_its_connection(interrupting: Callable[[], None]) -> None:
    acting = Acting(lambda *_: interrupting())
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        with pytest.raises(KeyboardInterrupt):
            connection.call(asking("now"))
        assert eventually(lambda: acting.ends == 1)
        connection.warm(LARGE)


def test_what_no_frame_carries_is_left_to_grpc() -> None:
    acting = Acting(lambda *_: None)
    with playing(acting) as host, BlockingConnection(host.target) as connection:
        connection.warm(LARGE)
        asked = len(acting.asked)
        assert isinstance(connection.outcome(bytes(limits.FRAME_MAX)), Code)
        assert len(acting.asked) == asked
        assert connection.call(LARGE) == b"framed:" + LARGE
