"""Large calls of an event loop on framed connections of their own (SPEC 9.6.3)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from casemate import frames, limits
from casemate.errors import Code, RequestError
from casemate.framed import Kind
from casemate.frames import ANSWER
from tests.support.aio_connection import LoopedConnection
from tests.support.attacker import eventually
from tests.support.framed_host import FramedDouble, Peer, Script, playing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.client.aio_framed_pool import Pool

LARGE = b"x" * (limits.CALL_STREAM_REQUEST_MAX + 1)
ANSWERED = Kind.REQUEST | ANSWER


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 600.0)
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 60.0)
    monkeypatch.setattr(limits, "FRAMED_POOL_IDLE_S", 600.0)


@contextlib.contextmanager
def ready(then: Script, request: bytes = LARGE) -> Iterator[tuple[FramedDouble, LoopedConnection]]:
    """A client with one connection, which has carried one call; the host goes on with ``then``."""

    def script(host: FramedDouble, peer: Peer) -> None:
        peer.begin()
        warm = peer.take()
        if warm is not None:
            peer.echo(warm)
            then(host, peer)

    with playing(script) as host, LoopedConnection(host.target) as client:
        client.fetch_evidence()
        assert eventually(lambda: client.call(request) == b"framed:" + request)
        yield host, client


def pool_of(client: LoopedConnection) -> Pool:
    way = client.connection._framed._way
    assert way is not None
    return way._pool


def on_echo(_: FramedDouble, peer: Peer) -> None:
    while (frame := peer.take()) is not None:
        peer.echo(frame)


def test_a_connection_carries_one_call_after_the_other() -> None:
    budgets: list[int] = []

    def note(_: FramedDouble, peer: Peer) -> None:
        while (frame := peer.take()) is not None:
            budgets.append(frame.budget)
            peer.echo(frame)

    with ready(note) as (host, client):
        for number in range(20):
            request = LARGE + b"%d" % number
            assert client.call(request, 7) == b"framed:" + request
        assert len(host.peers) == 1
    assert len(budgets) == 20
    assert all(0 < budget <= 7000 for budget in budgets)


@pytest.mark.parametrize("size", [200_000, limits.MIB, 5 * limits.MIB, 20 * limits.MIB])
def test_requests_and_answers_may_be_as_long_as_frames(size: int) -> None:
    request = bytes(range(251)) * (size // 251)
    with ready(on_echo) as (host, client):
        for _ in range(2):
            assert client.call(request) == b"framed:" + request
        assert len(host.peers) == 1


def test_what_fits_no_frame_is_a_call_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.client.aio_framed._REQUEST_MAX", len(LARGE))
    with ready(on_echo) as (_, client):
        assert client.call(LARGE + b"x") == b"unary:" + LARGE + b"x"
        assert client.call(LARGE) == b"framed:" + LARGE


def test_a_host_that_reads_and_answers_in_dribs_is_understood() -> None:
    def dribble(_: FramedDouble, peer: Peer) -> None:
        peer.sock.setsockopt(*RECEIVE_BUFFER, 65_536)
        while (frame := peer.take()) is not None:
            answer = frames.encode_frame(ANSWERED, b"framed:" + frame.payload)
            for at in range(0, len(answer), 30_011):
                peer.raw(answer[at : at + 30_011])

    request = LARGE * 20
    with ready(dribble) as (host, client):
        for _ in range(3):
            assert client.call(request) == b"framed:" + request
        assert len(host.peers) == 1


RECEIVE_BUFFER = (1, 8)  # SOL_SOCKET, SO_RCVBUF


def test_a_refusal_keeps_the_connection() -> None:
    def refuse(_: FramedDouble, peer: Peer) -> None:
        while (frame := peer.take()) is not None:
            if bytes(frame.payload[-1:]) == b"!":
                peer.refuse("OVERLOADED", "busy\x1b[2J", 1500)
            else:
                peer.echo(frame)

    with ready(refuse) as (host, client):
        for _ in range(3):
            with pytest.raises(RequestError) as raised:
                client.call(LARGE + b"!")
            assert raised.value.code is Code.OVERLOADED
            assert raised.value.retry_after_s == 1.5
            assert "\x1b" not in str(raised.value)
            assert client.call(LARGE) == b"framed:" + LARGE
        assert len(host.peers) == 1


def silent(heard: list[bytes]) -> Script:
    def script(host: FramedDouble, peer: Peer) -> None:
        frame = peer.take()
        if frame is not None and len(host.peers) == 1:
            heard.append(b"asked")
            heard.append(peer.at_end())

    return script


def test_a_call_at_its_deadline_ends_the_connection() -> None:
    heard: list[bytes] = []
    with ready(silent(heard)) as (host, client):
        assert client.begin(LARGE, 0.1).result(60) is Code.DEADLINE_EXCEEDED
        assert eventually(lambda: heard == [b"asked", b""])
        assert eventually(lambda: client.call(LARGE) == b"framed:" + LARGE)
        assert len(host.peers) == 2


def test_a_cancelled_call_ends_the_connection() -> None:
    heard: list[bytes] = []
    with ready(silent(heard)) as (_, client):
        call = client.begin(LARGE)
        assert eventually(lambda: heard == [b"asked"])
        call.cancel()
        assert eventually(lambda: heard == [b"asked", b""])
        assert len(pool_of(client)) == 0


def test_a_call_that_the_host_does_not_read_ends_at_its_deadline() -> None:
    heard: list[int] = []

    def stall(host: FramedDouble, peer: Peer) -> None:
        host.go.wait(60)
        heard.append(len(peer.at_end()))

    request = LARGE * 400
    with ready(stall) as (host, client):
        assert client.begin(request, 0.2).result(60) is Code.DEADLINE_EXCEEDED
        assert len(pool_of(client)) == 0
        host.go.set()
        assert eventually(lambda: bool(heard))
        assert heard[0] < len(request)


def last_words(peer: Peer, data: bytes) -> None:
    peer.raw(data)
    peer.end_sending()


ENDS: dict[str, Callable[[Peer], None]] = {
    "ended": lambda peer: peer.end_sending(),
    "within a head": lambda peer: last_words(peer, b"\x00\x00"),
    "within a frame": lambda peer: last_words(peer, frames.encode_frame(ANSWERED, b"abc")[:-1]),
    "reset": lambda peer: peer.reset(),
    "unreadable refusal": lambda peer: peer.send(frames.ERROR, b"\xff\xff"),
    "another type": lambda peer: peer.send(Kind.MANY | ANSWER, b""),
    "a question": lambda peer: peer.send(Kind.REQUEST, b""),
    "length below the head": lambda peer: peer.raw(b"\x00\x00\x00\x04\x83abcd"),
    "length above the bound": lambda peer: peer.raw(b"\xff\xff\xff\xff\x83abcd"),
}


@pytest.mark.parametrize("how", list(ENDS))
def test_a_connection_that_dies_or_lies_after_bytes_were_sent_fails_its_call(how: str) -> None:
    def die(host: FramedDouble, peer: Peer) -> None:
        if len(host.peers) > 1:
            on_echo(host, peer)
        elif peer.take() is not None:
            ENDS[how](peer)
            if how != "reset":
                peer.at_end()

    with ready(die) as (host, client):
        unary = host.unary
        assert client.begin(LARGE).result(60) is Code.UNAVAILABLE
        assert host.unary == unary
        assert eventually(lambda: client.call(LARGE) == b"framed:" + LARGE)
        assert len(host.peers) == 2


def test_an_answer_before_its_request_ends_the_connection() -> None:
    def hasty(host: FramedDouble, peer: Peer) -> None:
        peer.sock.recv(1)
        peer.send(ANSWERED, b"lie")
        host.go.wait(60)

    with ready(hasty) as (_, client):
        assert client.begin(LARGE * 400).result(60) is Code.UNAVAILABLE


def test_what_nobody_asked_ends_an_idle_connection() -> None:
    heard: list[bytes] = []

    def chatter(_: FramedDouble, peer: Peer) -> None:
        peer.send(ANSWERED, b"lie")
        heard.append(peer.at_end())

    with ready(chatter) as (host, client):
        assert eventually(lambda: heard == [b""])
        assert client.call(LARGE) == b"framed:" + LARGE
        assert len(host.peers) == 2


def test_a_connection_that_died_idle_is_passed_over() -> None:
    def die(host: FramedDouble, peer: Peer) -> None:
        if len(host.peers) > 1:
            on_echo(host, peer)

    with ready(die) as (host, client):
        assert eventually(lambda: host.peers[0].sock.fileno() < 0)
        assert client.call(LARGE) == b"framed:" + LARGE
        assert len(host.peers) == 2


def test_that_the_host_has_ended_a_connection_is_seen_before_it_is_used() -> None:
    """Whether the loop has said so or not: here it has had no turn for it."""

    def end(host: FramedDouble, peer: Peer) -> None:
        peer.end_sending()
        host.go.set()
        peer.at_end()

    def blocking_then_call(host: FramedDouble, client: LoopedConnection) -> bytes:
        async def work() -> bytes:
            host.go.wait(60)  # the loop stands still
            return bytes(await client.connection.call("Infer", LARGE, 60))

        answer: bytes = client.submit(work()).result(100)
        return answer

    with ready(end) as (host, client):
        assert blocking_then_call(host, client) == b"framed:" + LARGE
        assert len(host.peers) == 2


def test_there_are_at_most_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(host: FramedDouble, peer: Peer) -> None:
        peer.begin()
        while (frame := peer.take()) is not None:
            if bytes(frame.payload) != LARGE:
                host.go.wait(60)
            peer.echo(frame)

    monkeypatch.setattr(limits, "FRAMED_POOL", 3)
    with playing(hold) as host, LoopedConnection(host.target) as client:
        client.fetch_evidence()
        assert eventually(lambda: client.call(LARGE) == b"framed:" + LARGE)
        held = LARGE + b"hold"
        calls = []
        for count in (1, 2, 3):
            calls.append(client.begin(held))
            assert eventually(lambda: len(pool_of(client)) == count)  # noqa: B023 - asked here
        for _ in range(3):
            assert client.call(held) == b"unary:" + held
        host.go.set()
        assert [call.result(60) for call in calls] == [b"framed:" + held] * 3
        assert len(host.peers) == 3


def test_further_connections_come_only_after_one_has_succeeded() -> None:
    def mute(host: FramedDouble, peer: Peer) -> None:
        host.go.wait(60)

    with playing(mute) as host, LoopedConnection(host.target) as client:
        client.fetch_evidence()
        assert eventually(lambda: bool(client.call(LARGE) and host.peers))
        for _ in range(5):
            assert client.together([LARGE] * 8) == [b"unary:" + LARGE] * 8
        assert len(host.peers) == 1


def test_calls_side_by_side_get_connections_of_their_own() -> None:
    with ready(on_echo) as (host, client):
        requests = [LARGE + b"%d" % number for number in range(8)]

        def framed() -> bool:
            ends = client.together(requests)
            assert [end[-len(LARGE) - 1 :] for end in ends if isinstance(end, bytes)] == requests
            return all(isinstance(end, bytes) and end.startswith(b"framed:") for end in ends)

        assert eventually(framed)
        assert len(host.peers) <= 8


def test_where_no_further_connection_is_had_calls_are_made_by_themselves() -> None:
    def one_only(host: FramedDouble, peer: Peer) -> None:
        if len(host.peers) == 1:
            peer.begin()
            while (frame := peer.take()) is not None:
                peer.echo(frame)
                host.go.wait(60)

    with playing(one_only) as host, LoopedConnection(host.target) as client:
        client.fetch_evidence()
        assert eventually(lambda: client.call(LARGE) == b"framed:" + LARGE)
        held_up = client.begin(LARGE)
        for _ in range(5):
            assert client.call(LARGE) == b"unary:" + LARGE
        assert len(host.peers) == 2
        host.go.set()
        assert held_up.result(60) == b"framed:" + LARGE


def test_a_call_waits_for_a_connection_no_longer_than_for_its_answer() -> None:
    def slow(host: FramedDouble, peer: Peer) -> None:
        if len(host.peers) > 1:
            host.go.wait(60)
        peer.begin()
        while (frame := peer.take()) is not None:
            peer.echo(frame)
            host.go.wait(60)

    with playing(slow) as host, LoopedConnection(host.target) as client:
        client.fetch_evidence()
        assert eventually(lambda: client.call(LARGE) == b"framed:" + LARGE)
        held_up = client.begin(LARGE)
        assert client.begin(LARGE, 0.1).result(60) is Code.DEADLINE_EXCEEDED
        host.go.set()
        assert held_up.result(60) == b"framed:" + LARGE


def test_a_call_that_waits_for_a_connection_fails_when_the_client_is_closed() -> None:
    def slow(host: FramedDouble, peer: Peer) -> None:
        if len(host.peers) > 1:
            host.go.wait(60)
            return
        peer.begin()
        while (frame := peer.take()) is not None:
            peer.echo(frame)
            host.go.wait(60)

    with playing(slow) as host, LoopedConnection(host.target) as client:
        client.fetch_evidence()
        assert eventually(lambda: client.call(LARGE) == b"framed:" + LARGE)
        calls = [client.begin(LARGE), client.begin(LARGE)]
        assert eventually(lambda: len(host.peers) == 2)
        client.hang_up()
        assert [call.result(60) for call in calls] == [Code.UNAVAILABLE] * 2
        assert client.begin(LARGE).result(60) is Code.UNAVAILABLE


def test_connections_that_are_idle_for_long_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAMED_POOL_IDLE_S", 0.2)
    heard: list[bytes] = []
    with ready(lambda _, peer: heard.append(peer.at_end())) as (_, client):
        assert eventually(lambda: heard == [b""])
        assert len(pool_of(client)) == 0


def test_one_that_has_been_idle_for_too_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with ready(on_echo) as (host, client):
        monkeypatch.setattr(limits, "FRAMED_POOL_IDLE_S", -1.0)
        assert client.call(LARGE) == b"unary:" + LARGE
        assert eventually(lambda: host.peers[0].sock.fileno() < 0)
