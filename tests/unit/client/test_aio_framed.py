"""How an event loop's client takes a host's offer of framed connections (SPEC 9.6.3)."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from casemate import frames, limits
from casemate.client.access import HostAccess
from casemate.client.aio_framed import AsyncFramed
from casemate.errors import Code
from casemate.framed import METADATA, Kind, Offer
from casemate.frames import ANSWER
from tests.support.aio_connection import LoopedConnection
from tests.support.attacker import eventually
from tests.support.framed_host import FramedDouble, Peer, echo, listening, playing
from tests.support.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGE = b"x" * (limits.CALL_STREAM_REQUEST_MAX + 1)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has failed is not tried again, and nothing times out, because the machine is slow."""
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 600.0)
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 60.0)


@contextlib.contextmanager
def client_of(host: FramedDouble) -> Iterator[LoopedConnection]:
    with LoopedConnection(host.target) as client:
        client.fetch_evidence()
        yield client


def becomes_framed(client: LoopedConnection, request: bytes = b"warm") -> bool:
    return eventually(lambda: client.call(request) == b"framed:" + request)


def never_framed(client: LoopedConnection, *requests: bytes) -> None:
    """Far more calls than it takes until a connection is tried."""
    for _ in range(20):
        for request in requests or (b"small", LARGE):
            assert client.call(request) in {b"unary:" + request, b"joined:" + request}


def test_the_first_calls_are_made_by_themselves() -> None:
    with playing() as host, client_of(host) as client:
        for _ in range(limits.CALL_STREAM_AFTER):
            assert client.call(b"x") == b"unary:x"
        assert host.peers == []


@pytest.mark.parametrize("request_", [b"small", LARGE], ids=["small", "large"])
def test_calls_take_the_offer(request_: bytes) -> None:
    with playing() as host, client_of(host) as client:
        assert becomes_framed(client, request_)
        unary = host.unary
        for _ in range(20):
            assert client.call(request_) == b"framed:" + request_
        assert host.unary == unary
        assert len(host.peers) == 1
        assert host.streams == 0


def test_small_and_large_requests_do_not_share_a_connection() -> None:
    with playing() as host, client_of(host) as client:
        assert becomes_framed(client, b"small")
        assert becomes_framed(client, LARGE)
        assert len(host.peers) == 2
        edge = LARGE[:-1]
        assert client.call(edge) == b"framed:" + edge


def test_a_host_that_offers_none_gets_calls() -> None:
    with playing() as host:
        host.offered = ""
        with client_of(host) as client:
            never_framed(client)
            assert host.peers == []
            assert eventually(lambda: client.call(b"x") == b"joined:x")


@pytest.mark.parametrize("offered", ["0 " + "a" * 32, "70000 " + "a" * 32, "x", "7443 abc", "7443"])
def test_what_is_no_offer_is_none(offered: str) -> None:
    with playing() as host:
        host.offered = offered
        with client_of(host) as client:
            never_framed(client)
            assert host.peers == []


@pytest.mark.parametrize(
    ("target", "access"),
    [
        ("127.0.0.1:7443", HostAccess(tls_roots=b"roots")),
        ("unix:/run/host.sock", HostAccess()),
        ("dns:///host.example:7443", HostAccess()),
    ],
    ids=["tls", "unix", "resolver"],
)
def test_only_a_plain_address_without_tls_takes_an_offer(target: str, access: HostAccess) -> None:
    framed = AsyncFramed(target, access)
    framed.answer_came([(METADATA, Offer.new(7444).text)])
    assert not framed.promising


FALSE_GREETINGS: dict[str, Callable[[Offer], bytes]] = {
    "another host's id": lambda offer: Offer.new(offer.port).greeting,
    "another version": lambda offer: frames.encode_frame(Kind.HELLO, b"\x02" + offer.host_id),
    "another type": lambda offer: frames.encode_frame(Kind.MANY, b"\x01" + offer.host_id),
    "too short": lambda offer: offer.greeting[:-1],
    "nothing": lambda _: b"",
    "another service": lambda _: b"SSH-2.0-OpenSSH_9.9 and more\r\n",
    "http": lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("how", list(FALSE_GREETINGS))
@pytest.mark.parametrize("request_", [b"small", LARGE], ids=["small", "large"])
def test_not_a_byte_goes_to_whoever_greets_otherwise(how: str, request_: bytes) -> None:
    heard: list[bytes] = []

    def another(_: FramedDouble, peer: Peer) -> None:
        peer.raw(FALSE_GREETINGS[how](peer.offer))
        peer.end_sending()
        heard.append(peer.at_end())

    with playing(another) as host, client_of(host) as client:
        assert eventually(lambda: bool(client.call(request_) and heard))
        never_framed(client, request_)
        assert heard == [b""]


def test_whoever_says_nothing_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def heard(seconds: float) -> list[bytes]:
        """What the host heard of whoever waits so long; nothing if there was no time to connect."""
        monkeypatch.setattr(limits, "FRAMED_CONNECT_S", seconds)
        said: list[bytes] = []
        with (
            playing(lambda _, peer: said.append(peer.at_end())) as host,
            client_of(host) as client,
        ):
            eventually(lambda: bool(client.call(b"x") and said), 10 * seconds)
            never_framed(client)
        return said

    assert patiently(heard, bool) == [b""]


def test_a_greeting_may_come_in_pieces() -> None:
    def dribble(host: FramedDouble, peer: Peer) -> None:
        for index in range(len(peer.offer.greeting)):
            peer.raw(peer.offer.greeting[index : index + 1])
        assert peer.take() is not None
        for byte in frames.encode_frame(Kind.HELLO | ANSWER, b""):
            peer.raw(bytes([byte]))
        for each in peer.each():
            peer.answer(each)

    with playing(dribble) as host, client_of(host) as client:
        assert becomes_framed(client)


@pytest.mark.parametrize("request_", [b"small", LARGE], ids=["small", "large"])
def test_nothing_is_asked_before_the_hello_is_answered(request_: bytes) -> None:
    heard: list[bytes] = []

    def late(host: FramedDouble, peer: Peer) -> None:
        peer.raw(peer.offer.greeting)
        hello = peer.take()
        assert hello is not None
        assert (hello.type, bytes(hello.payload)) == (Kind.HELLO, b"")
        host.go.wait(60)
        peer.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            heard.append(peer.sock.recv(1))
        peer.sock.setblocking(True)
        peer.send(Kind.HELLO | ANSWER)
        frame = peer.take()
        assert frame is not None

    with playing(late) as host, client_of(host) as client:
        assert eventually(lambda: bool(client.call(request_) and host.peers))
        for _ in range(20):
            assert client.call(request_) == b"unary:" + request_
        host.go.set()
        assert eventually(lambda: client.begin(request_).result(60) is Code.UNAVAILABLE)
        assert heard == []
        assert host.streams == 0


def test_the_hello_carries_the_token() -> None:
    hellos: list[bytes] = []

    def note(_: FramedDouble, peer: Peer) -> None:
        hellos.append(peer.begin())

    token = "t" * 16
    with (
        playing(note) as host,
        LoopedConnection(host.target, HostAccess(token=token)) as client,
    ):
        client.fetch_evidence()
        assert eventually(lambda: bool(client.begin(b"x").result(60) and hellos))
        assert hellos[0] == b"Bearer " + token.encode()


REFUSALS: dict[str, Callable[[Peer], None]] = {
    "refused": lambda peer: peer.refuse("OVERLOADED"),
    "unauthenticated": lambda peer: peer.refuse("UNAUTHENTICATED"),
    "another type": lambda peer: peer.send(Kind.MANY | ANSWER),
    "not empty": lambda peer: peer.send(Kind.HELLO | ANSWER, b"x"),
    "ended": lambda peer: peer.end_sending(),
    "reset": lambda peer: peer.reset(),
}


@pytest.mark.parametrize("how", list(REFUSALS))
def test_a_client_that_is_refused_makes_calls_and_does_not_ask_again_at_once(how: str) -> None:
    heard: list[bytes] = []

    def refuse(_: FramedDouble, peer: Peer) -> None:
        peer.raw(peer.offer.greeting)
        assert peer.take() is not None
        REFUSALS[how](peer)
        heard.append(b"" if how == "reset" else peer.at_end())

    with playing(refuse) as host, client_of(host) as client:
        assert eventually(lambda: bool(client.call(b"x") and heard))
        never_framed(client)
        assert heard == [b""]
        assert eventually(lambda: client.call(b"x") == b"joined:x")


def test_a_client_that_finds_nobody_makes_calls() -> None:
    with playing() as host, socket.create_server(("127.0.0.1", 0)) as taken:
        host.offered = Offer.new(taken.getsockname()[1]).text
        taken.close()
        with client_of(host) as client:
            never_framed(client)
            assert eventually(lambda: client.call(b"x") == b"joined:x")
            assert not client.connection._framed.promising


def test_what_led_nowhere_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 0.01)

    def better(host: FramedDouble, peer: Peer) -> None:
        if len(host.peers) > 2:
            echo(host, peer)

    with playing(better) as host, client_of(host) as client:
        assert becomes_framed(client)
        assert len(host.peers) == 3


def test_a_new_offer_is_taken_though_the_old_led_nowhere() -> None:
    with playing(lambda _, peer: peer.sock.close()) as host, client_of(host) as client:
        assert eventually(lambda: bool(client.call(b"x") and host.peers))
        never_framed(client)
        host.script = echo
        with listening(host):
            client.fetch_evidence()
            assert becomes_framed(client)


@pytest.mark.parametrize("request_", [b"small", LARGE], ids=["small", "large"])
def test_a_host_that_comes_back_is_found_by_the_offer_in_its_answers(request_: bytes) -> None:
    with playing() as host, client_of(host) as client:
        assert becomes_framed(client, request_)
        with listening(host):
            for peer in list(host.peers):
                peer.sock.shutdown(socket.SHUT_RDWR)
            host.insists = True
            assert eventually(lambda: client.together([request_]) == [b"framed:" + request_])
            assert host.peers[-1].offer == host.offer


def test_the_same_offer_again_changes_nothing() -> None:
    with playing() as host, client_of(host) as client:
        assert becomes_framed(client)
        assert becomes_framed(client, LARGE)
        for _ in range(3):
            client.fetch_evidence()
            assert client.call(b"x") == b"framed:x"
            assert client.call(LARGE) == b"framed:" + LARGE
        assert len(host.peers) == 2


def held(host: FramedDouble, peer: Peer) -> None:
    """Answer ``hold`` only when the test goes on; then hear the client's end."""
    peer.begin()
    while (frame := peer.take()) is not None:
        if b"hold" in bytes(frame.payload):
            host.go.wait(60)
        peer.echo(frame)


@pytest.mark.parametrize("padding", [b"", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("again", [True, False], ids=["another offer", "no offer"])
def test_with_a_new_offer_what_is_open_to_the_old_ends_with_its_answers(
    padding: bytes, *, again: bool
) -> None:
    with playing(held) as host, client_of(host) as client:
        assert becomes_framed(client, b"warm" + padding)
        waiting = client.begin(b"hold" + padding)
        old = list(host.peers)
        new = FramedDouble()
        with listening(new):
            host.offered = new.offer.text if new.offer and again else ""
            client.fetch_evidence()
            if again:
                assert becomes_framed(client, b"more" + padding)
                assert len(new.peers) == 1
            else:
                never_framed(client, b"more" + padding)
            assert not waiting.done()
            host.go.set()
            assert waiting.result(60) == b"framed:hold" + padding
            assert eventually(lambda: all(peer.sock.fileno() < 0 for peer in old))
            assert host.peers == old


def test_closing_ends_every_connection_and_every_call() -> None:
    with playing(held) as host, client_of(host) as client:
        assert becomes_framed(client)
        assert becomes_framed(client, LARGE)
        waiting = [client.begin(b"hold"), client.begin(b"hold" + LARGE)]
        assert eventually(lambda: len(client.tasks()) >= 2)
        client.hang_up()
        assert [each.result(60) for each in waiting] == [Code.UNAVAILABLE] * 2
        host.go.set()
        assert eventually(lambda: all(peer.sock.fileno() < 0 for peer in host.peers))


def test_closing_ends_what_is_being_begun() -> None:
    heard: list[bytes] = []
    with (
        playing(lambda _, peer: heard.append(peer.at_end())) as host,
        client_of(host) as client,
    ):
        assert eventually(lambda: bool(client.call(b"x") and host.peers))
        client.hang_up()
        assert eventually(lambda: heard == [b""])
        client.connection._framed.answer_came([(METADATA, Offer.new(7444).text)])
        assert not client.connection._framed.promising
