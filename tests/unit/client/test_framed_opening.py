"""How a client takes an offer, or leaves it: it speaks to its host alone (SPEC 9.6.3)."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from casemate import framed, limits
from casemate.client.access import HostAccess
from casemate.client.framed import WELCOME, FramedHost
from casemate.client.framed_dial import Dial, NowhereError
from casemate.framed import Kind, Offer
from casemate.frames import ANSWER
from casemate.v1.confidential_inference_pb2 import NumberedRequest, SealedRequests
from tests.support.attacker import eventually
from tests.support.blocking_connection import LARGE, SMALL, BlockingConnection
from tests.support.framed_host import FramedDouble, Peer, echo, listening, playing
from tests.support.patience import patiently
from tests.support.threads import Newcomers

if TYPE_CHECKING:
    from collections.abc import Callable

sizes = pytest.mark.parametrize("request_", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What led nowhere is tried once in a test, however slow the machine is."""
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 600.0)
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 60.0)


def by_grpc(connection: BlockingConnection, request: bytes) -> bool:
    """Make a call; tell whether it did not travel in frames."""
    return connection.call(request) in {b"unary:" + request, b"joined:" + request}


class Heard:
    """Plays ``first`` and then notes all that the client says until it ends the connection."""

    def __init__(self, first: Callable[[Peer], object]) -> None:
        self._first = first
        self.bytes: list[bytes] = []

    def __call__(self, _: FramedDouble, peer: Peer) -> None:
        self._first(peer)
        self.bytes.append(peer.at_end())


GREETINGS: dict[str, Callable[[Offer], bytes]] = {
    "another host": lambda offer: Offer.new(offer.port).greeting,
    "another service": lambda _: b"220 mail.example ESMTP ready for whatever is asked\r\n",
    "a short word": lambda _: b"SSH",
    "one bit differs": lambda offer: offer.greeting[:-1] + bytes([offer.greeting[-1] ^ 1]),
    "another version": lambda offer: offer.greeting.replace(b"\x01", b"\x02", 1),
    "a longer frame": lambda offer: b"\0\0\0\x17" + offer.greeting[4:] + b"\0",
    "the answer to a hello": lambda _: WELCOME,
}


@sizes
@pytest.mark.parametrize("how", list(GREETINGS))
def test_not_a_byte_goes_to_whoever_greets_otherwise(how: str, request_: bytes) -> None:
    heard = Heard(lambda peer: peer.raw(GREETINGS[how](peer.offer)))
    with playing(heard) as host, BlockingConnection(host.target) as connection:
        assert eventually(lambda: bool(by_grpc(connection, request_) and heard.bytes))
        for _ in range(10):
            assert by_grpc(connection, request_)
    assert heard.bytes == [b""]


@sizes
def test_not_a_byte_goes_to_whoever_has_greeted_in_part(
    monkeypatch: pytest.MonkeyPatch, request_: bytes
) -> None:
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 1.0)
    heard = Heard(lambda peer: peer.raw(peer.offer.greeting[:-1]))
    with playing(heard) as host, BlockingConnection(host.target) as connection:
        assert eventually(lambda: bool(by_grpc(connection, request_) and heard.bytes))
    assert heard.bytes == [b""]


@sizes
def test_a_greeting_may_come_in_pieces(request_: bytes) -> None:
    class Dribbling:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def sendall(self, data: bytes) -> None:
            for at in range(len(data)):
                self._sock.sendall(data[at : at + 1])

        def __getattr__(self, name: str) -> object:
            return getattr(self._sock, name)

    def dribble(host: FramedDouble, peer: Peer) -> None:
        peer.sock = Dribbling(peer.sock)  # type: ignore[assignment]
        echo(host, peer)

    with playing(dribble) as host, BlockingConnection(host.target) as connection:
        connection.warm(request_)


@sizes
def test_nothing_is_asked_before_the_hello_is_answered(
    monkeypatch: pytest.MonkeyPatch, request_: bytes
) -> None:
    def said(seconds: float) -> list[bytes]:
        """What the client says that waits for so long; nothing if it was not greeted in time."""
        monkeypatch.setattr(limits, "FRAMED_CONNECT_S", seconds)
        heard = Heard(lambda peer: peer.raw(peer.offer.greeting))
        with playing(heard) as host, BlockingConnection(host.target) as connection:
            assert eventually(lambda: bool(by_grpc(connection, request_) and heard.bytes))
        return heard.bytes

    assert patiently(said, any) == [framed.hello()]


REFUSALS: dict[str, Callable[[Peer], object]] = {
    "a refusal": lambda peer: peer.refuse("OVERLOADED"),
    "another type": lambda peer: peer.send(Kind.MANY | ANSWER),
    "an answer with something in it": lambda peer: peer.send(Kind.HELLO | ANSWER, b"x"),
    "nothing more": lambda peer: peer.end_sending(),
    "a reset": lambda peer: peer.reset(),
}


@sizes
@pytest.mark.parametrize("how", list(REFUSALS))
def test_a_client_that_is_refused_makes_calls_and_does_not_ask_again_at_once(
    how: str, request_: bytes
) -> None:
    def refuse(_: FramedDouble, peer: Peer) -> None:
        peer.raw(peer.offer.greeting)
        peer.take()
        REFUSALS[how](peer)

    with playing(refuse) as host, BlockingConnection(host.target) as connection:
        assert eventually(lambda: bool(by_grpc(connection, request_) and host.peers))
        if request_ is SMALL:  # then by a stream of gRPC
            assert eventually(lambda: bool(connection.call(SMALL) == b"joined:small"))
        for _ in range(20):
            assert by_grpc(connection, request_)
        assert len(host.peers) == 1


@sizes
def test_a_client_that_finds_nobody_makes_calls(request_: bytes) -> None:
    with playing() as host, BlockingConnection(host.target) as connection:
        host.offer = _to_nobody()
        connection.fetch_evidence()
        for _ in range(20):
            assert by_grpc(connection, request_)
        assert host.peers == []


def _to_nobody() -> Offer:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        return Offer.new(closed_soon.getsockname()[1])


def test_what_led_nowhere_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        playing(lambda _, peer: peer.raw(WELCOME)) as host,
        BlockingConnection(host.target) as connection,
    ):
        assert eventually(lambda: connection.call(SMALL) == b"joined:small")
        assert eventually(lambda: by_grpc(connection, LARGE) and len(host.peers) == 2)
        host.script = echo
        for _ in range(20):
            assert by_grpc(connection, LARGE)
            assert by_grpc(connection, SMALL)
        # The time passes.
        monkeypatch.setattr(connection.connection._framed, "_not_before", 0.0)
        monkeypatch.setattr(connection.connection._framed._pool, "_not_before", 0.0)
        connection.connection._shared.renew()  # as when the stream of gRPC is old
        connection.warm(LARGE)
        connection.warm(SMALL)


def test_a_new_offer_is_taken_though_the_old_led_nowhere() -> None:
    with playing() as host, BlockingConnection(host.target) as connection:
        good = host.offer
        host.offer = _to_nobody()
        connection.fetch_evidence()
        assert eventually(lambda: bool(connection.call(SMALL) == b"joined:small"))
        assert connection.call(LARGE) == b"unary:" + LARGE
        host.offer = good
        connection.fetch_evidence()
        connection.warm(SMALL)
        connection.warm(LARGE)


@sizes
def test_a_host_that_comes_back_is_found_by_the_offer_in_its_answers(request_: bytes) -> None:
    with playing() as host, BlockingConnection(host.target) as connection:
        connection.warm(request_)
        with listening(host):
            for peer in list(host.peers):
                peer.sock.shutdown(socket.SHUT_RDWR)
            host.insists = True
            assert eventually(lambda: connection.outcome(request_) == b"framed:" + request_)
            assert host.peers[-1].offer == host.offer


def test_the_same_offer_again_and_none_change_nothing() -> None:
    with playing() as host, BlockingConnection(host.target) as connection:
        connection.warm(SMALL)
        connection.warm(LARGE)
        for host.offered in (None, "", "8444"):
            connection.fetch_evidence()
            assert connection.call(SMALL) == b"framed:small"
            assert connection.call(LARGE) == b"framed:" + LARGE
        assert len(host.peers) == 2


@sizes
def test_with_a_new_offer_what_is_under_way_is_answered_and_then_the_old_ends(
    request_: bytes,
) -> None:
    answering = threading.Event()
    ended = threading.Event()
    held = request_.replace(b"s", b"S").replace(b"l", b"L")

    def hold(host: FramedDouble, peer: Peer) -> None:
        if peer.offer != first:
            echo(host, peer)
            return
        peer.begin()
        while (frame := peer.take()) is not None:
            if held in bytes(frame.payload):
                waiting.set()
                answering.wait(60)
            if frame.type == Kind.REQUEST:
                peer.send(Kind.REQUEST | ANSWER, b"framed:" + frame.payload)
            else:
                asked = framed_requests(bytes(frame.payload))
                peer.answer(*asked)
        ended.set()

    waiting = threading.Event()
    with playing(hold) as host, BlockingConnection(host.target) as connection:
        assert host.offer is not None
        first = host.offer
        connection.warm(request_)
        caller = threading.Thread(target=lambda: outcomes.append(connection.outcome(held)))
        outcomes: list[object] = []
        caller.start()
        assert waiting.wait(60)
        with listening(host):
            connection.fetch_evidence()
            assert connection.call(request_) in {b"framed:" + request_, b"unary:" + request_}
            assert not ended.is_set()
            answering.set()
            caller.join(60)
            assert outcomes == [b"framed:" + held]
            assert ended.wait(60)
            connection.warm(request_)
            host.go.clear()


def framed_requests(payload: bytes) -> list[NumberedRequest]:

    return list(SealedRequests.FromString(payload).requests)


def test_the_hello_carries_the_token() -> None:
    hellos: list[bytes] = []

    def note(host: FramedDouble, peer: Peer) -> None:
        peer.raw(peer.offer.greeting)
        frame = peer.take()
        assert frame is not None
        hellos.append(bytes(frame.payload))

    token = "t" * 16
    access = HostAccess(token=token)
    with playing(note) as host, BlockingConnection(host.target, access) as connection:
        assert eventually(lambda: bool(connection.call(LARGE) and hellos))
        assert eventually(lambda: bool(connection.call(SMALL) and len(hellos) == 2))
    assert set(hellos) == {b"Bearer " + token.encode()}


def test_calls_wait_for_no_port_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first connection that hangs for ten minutes holds up no call, and no end."""
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 600.0)
    threads = Newcomers()
    with playing(_mute) as host:
        connection = BlockingConnection(host.target)
        assert eventually(
            lambda: (
                by_grpc(connection, LARGE) and by_grpc(connection, SMALL) and len(host.peers) == 2
            )
        )
        for _ in range(5):
            assert connection.call(LARGE) == b"unary:" + LARGE
            assert by_grpc(connection, SMALL)
        connection.close()
        assert eventually(lambda: not threads.names() & {"framed-connect", "call-stream"})


def _mute(host: FramedDouble, _: Peer) -> None:
    host.go.wait(100)


def test_a_host_with_several_addresses_is_found_at_the_one_that_greets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with playing() as host:
        assert host.offer is not None
        nobody = _to_nobody().port
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))
            for port in (nobody, host.offer.port)
        ]
        with monkeypatch.context() as patched:
            patched.setattr(
                "casemate.client.framed_dial.socket.getaddrinfo", lambda *_, **__: found
            )

            dial = Dial(FramedHost("two.example", host.offer), framed.hello())
            channel = dial.connect(60)
            assert channel.getpeername() == ("127.0.0.1", host.offer.port)
            dial.close()


@pytest.mark.parametrize("error", [OSError, socket.gaierror, UnicodeError])
def test_a_name_that_is_not_found_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:

    def missing(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("casemate.client.framed_dial.socket.getaddrinfo", missing)
        with pytest.raises(NowhereError):
            Dial(FramedHost("none.example", Offer.new(1)), framed.hello()).connect(1)
