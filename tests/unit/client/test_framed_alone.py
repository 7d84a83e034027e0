"""A small call that meets no other has a connection of its own (SPEC 9.6.3), and waits for none."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from casemate import limits
from casemate.errors import Code
from casemate.framed import Kind
from casemate.frames import ANSWER
from tests.support.attacker import eventually
from tests.support.blocking_connection import LARGE, SMALL, BlockingConnection
from tests.support.framed_host import FramedDouble, Peer, playing

if TYPE_CHECKING:
    from collections.abc import Callable

HEARD = Kind.REQUEST | ANSWER


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is refused, and none is given up, because the machine is slow."""
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 600.0)
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 60.0)


class Noting:
    """Answers; of each request it notes the kind of frame, and of each connection its first one."""

    def __init__(self, hold: Callable[[bytes], object] = lambda _: None) -> None:
        self._hold = hold
        self.kinds: list[int] = []
        self.first: list[int] = []
        self.lone: list[Peer] = []  # connections whose first frame is a request

    def __call__(self, _: FramedDouble, peer: Peer) -> None:
        peer.begin()
        begun = False
        while (frame := peer.take()) is not None:
            if not begun:
                self.first.append(frame.type)
                self.lone += [peer] if frame.type == Kind.REQUEST else []
                begun = True
            self.kinds.append(frame.type)
            if frame.type == Kind.REQUEST:
                self._hold(bytes(frame.payload))
            peer.echo(frame)


def settled(connection: BlockingConnection, script: Noting) -> None:
    """Call until a small request has had a frame of its own."""
    assert eventually(
        lambda: connection.call(SMALL) == b"framed:" + SMALL and script.kinds[-1] == Kind.REQUEST
    )


def test_a_lone_call_has_a_frame_of_its_own_and_the_next_the_same_connection() -> None:
    script = Noting()
    with playing(script) as host, BlockingConnection(host.target, alone=True) as connection:
        settled(connection, script)
        before = len(script.kinds)
        for number in range(20):
            assert connection.call(b"%d" % number) == b"framed:%d" % number
        assert script.kinds[before:] == [Kind.REQUEST] * 20
        assert sorted(script.first) == [Kind.REQUEST, Kind.MANY]


def test_it_and_a_large_one_share_a_connection() -> None:
    script = Noting()
    with playing(script) as host, BlockingConnection(host.target, alone=True) as connection:
        settled(connection, script)
        for _ in range(5):
            assert connection.call(LARGE) == b"framed:" + LARGE
            assert connection.call(SMALL) == b"framed:" + SMALL
        assert script.first.count(Kind.REQUEST) == 1


def test_calls_that_meet_it_go_together() -> None:
    held, go = threading.Event(), threading.Event()

    def hold(payload: bytes) -> None:
        if payload == b"hold":
            held.set()
            assert go.wait(60)

    script = Noting(hold)
    with (
        playing(script) as host,
        BlockingConnection(host.target, alone=True) as connection,
        ThreadPoolExecutor(1) as pool,
    ):
        settled(connection, script)
        lone = pool.submit(connection.call, b"hold")
        assert held.wait(60)
        before = len(script.kinds)
        for number in range(5):
            assert connection.call(b"%d" % number) == b"framed:%d" % number
            time.sleep(0.05)  # in which a connection could be made that nobody is to make
        assert set(script.kinds[before:]) == {Kind.MANY}
        assert len(host.peers) == 2
        go.set()
        assert lone.result(60) == b"framed:hold"
        assert connection.call(SMALL) == b"framed:" + SMALL
        assert script.kinds[-1] == Kind.REQUEST


def test_no_call_waits_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()

    def second(_: FramedDouble, peer: Peer) -> None:
        """Greets the stream alone: whoever comes then hears nothing."""
        if len(host.peers) > 1:
            assert stuck.wait(60)
            return
        script(host, peer)

    script = Noting()
    with playing(second) as host, BlockingConnection(host.target, alone=True) as connection:
        assert eventually(lambda: connection.call(SMALL) == b"framed:" + SMALL)
        assert eventually(lambda: connection.call(SMALL) != b"" and len(host.peers) == 2)
        for number in range(10):
            assert connection.call(b"%d" % number) == b"framed:%d" % number
        assert set(script.kinds) == {Kind.MANY}
        stuck.set()


def test_no_call_waits_for_another_connection_either() -> None:
    full, go = threading.Event(), threading.Event()

    def greeting_until_full(host: FramedDouble, peer: Peer) -> None:
        if full.is_set():
            assert go.wait(60)
            return
        script(host, peer)

    script = Noting()
    with (
        playing(greeting_until_full) as host,
        BlockingConnection(host.target, alone=True) as connection,
    ):
        settled(connection, script)
        full.set()
        script.lone[0].end_sending()
        assert connection.call(SMALL, 20) == b"framed:" + SMALL
        assert script.kinds[-1] == Kind.MANY
        go.set()


def test_an_idle_connection_that_ended_is_replaced_and_the_call_answered() -> None:
    script = Noting()
    with playing(script) as host, BlockingConnection(host.target, alone=True) as connection:
        settled(connection, script)
        (peer,) = script.lone
        peer.end_sending()
        assert connection.call(SMALL) == b"framed:" + SMALL  # with others, on the stream
        settled(connection, script)
        assert len(script.lone) > 1


def test_a_call_ends_at_its_deadline() -> None:
    go = threading.Event()
    script = Noting(lambda payload: payload == b"hold" and go.wait(60))
    with playing(script) as host, BlockingConnection(host.target, alone=True) as connection:
        settled(connection, script)
        assert connection.outcome(b"hold", 0.2) is Code.DEADLINE_EXCEEDED
        assert connection.call(SMALL) == b"framed:" + SMALL
        go.set()
