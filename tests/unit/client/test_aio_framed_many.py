"""Small calls of an event loop on one framed connection, whatever the host does (SPEC 9.6.2)."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import pytest

from casemate import frames, limits
from casemate.errors import Code, RequestError
from casemate.framed import Kind
from casemate.frames import ANSWER
from casemate.v1.confidential_inference_pb2 import (
    NumberedRequest,
    NumberedResponse,
    Refusal,
    SealedRequests,
    SealedResponses,
)
from tests.support.aio_connection import LoopedConnection
from tests.support.attacker import eventually
from tests.support.framed_host import FramedDouble, Peer, Script, echo, playing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 600.0)
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 60.0)


@contextlib.contextmanager
def ready(then: Script) -> Iterator[tuple[FramedDouble, LoopedConnection]]:
    """A client whose connection has begun and carried one call; the host goes on with ``then``."""

    def script(host: FramedDouble, peer: Peer) -> None:
        peer.begin()
        warm = peer.take()
        if warm is not None:
            peer.echo(warm)
            then(host, peer)

    with playing(script) as host, LoopedConnection(host.target) as client:
        client.fetch_evidence()
        assert eventually(lambda: client.call(b"warm") == b"framed:warm")
        yield host, client


def on_echo(_: FramedDouble, peer: Peer) -> None:
    while (frame := peer.take()) is not None:
        peer.echo(frame)


def test_what_is_asked_in_one_turn_of_the_loop_leaves_in_one_frame() -> None:
    messages: list[int] = []

    def count(_: FramedDouble, peer: Peer) -> None:
        while (frame := peer.take()) is not None:
            messages.append(len(SealedRequests.FromString(bytes(frame.payload)).requests))
            peer.echo(frame)

    requests = [b"%d" % number for number in range(32)]
    with ready(count) as (_, client):
        for _ in range(10):
            assert client.together(requests) == [b"framed:" + each for each in requests]
    assert messages == [32] * 10


def test_a_message_keeps_to_its_bounds() -> None:
    sizes: list[tuple[int, int]] = []

    def measure(_: FramedDouble, peer: Peer) -> None:
        while (frame := peer.take()) is not None:
            asked = SealedRequests.FromString(bytes(frame.payload)).requests
            sizes.append((len(asked), len(frame.payload)))
            peer.echo(frame)

    with ready(measure) as (_, client):
        small = [b"%d" % number for number in range(limits.CALL_STREAM_ENTRIES_MAX + 50)]
        assert client.together(small) == [b"framed:" + each for each in small]
        large = [b"x" * limits.CALL_STREAM_REQUEST_MAX] * 12
        assert client.together(large) == [b"framed:" + each for each in large]
    assert max(count for count, _ in sizes) == limits.CALL_STREAM_ENTRIES_MAX
    assert max(size for _, size in sizes) <= limits.CALL_STREAM_MESSAGE_MAX


def test_answers_come_in_any_order_and_in_pieces() -> None:
    def backwards(_: FramedDouble, peer: Peer) -> None:
        asked = list(itertools.islice(peer.each(), 8))
        for each in reversed(asked):
            responses = [NumberedResponse(number=each.number, response=b"framed:" + each.request)]
            message = SealedResponses(responses=responses).SerializeToString()
            for byte in frames.encode_frame(Kind.MANY | ANSWER, message):
                peer.raw(bytes([byte]))
        assert peer.take() is None

    requests = [b"%d" % number for number in range(8)]
    with ready(backwards) as (_, client):
        assert client.together(requests) == [b"framed:" + each for each in requests]


def test_an_answer_may_be_longer_than_what_is_taken_at_once() -> None:
    def grow(_: FramedDouble, peer: Peer) -> None:
        for each in peer.each():
            answer = NumberedResponse(number=each.number, response=each.request * 100)
            message = SealedResponses(responses=[answer]).SerializeToString()
            peer.send(Kind.MANY | ANSWER, message)

    with ready(grow) as (_, client):
        for size in (1, 1_000, limits.CALL_STREAM_REQUEST_MAX):
            assert client.call(b"x" * size) == b"x" * size * 100


def test_messages_of_no_answers_are_allowed() -> None:
    def chatty(_: FramedDouble, peer: Peer) -> None:
        for each in peer.each():
            peer.send(Kind.MANY | ANSWER)
            peer.answer(each)
            peer.answer()

    with ready(chatty) as (_, client):
        for _ in range(5):
            assert client.call(b"x") == b"framed:x"


def test_a_refusal_says_what_a_status_says() -> None:
    def refuse(_: FramedDouble, peer: Peer) -> None:
        for each in peer.each():
            refusal = Refusal(reason=each.request.decode(), detail="no\x1b[2J", retry_delay=1500)
            entry = NumberedResponse(number=each.number, refusal=refusal)
            message = SealedResponses(responses=[entry]).SerializeToString()
            peer.send(Kind.MANY | ANSWER, message)

    with ready(refuse) as (host, client):
        with pytest.raises(RequestError) as raised:
            client.call(b"OVERLOADED")
        assert raised.value.code is Code.OVERLOADED
        assert raised.value.retry_after_s == 1.5
        assert "\x1b" not in str(raised.value)
        assert client.begin(b"EVIDENCE_AGE").result(60) is Code.HOST_UNREACHABLE
        assert len(host.peers) == 1


def speak_when_asked(asked: list[NumberedRequest]) -> Script:
    def script(_: FramedDouble, peer: Peer) -> None:
        for each in peer.each():
            asked.append(each)
            if each.request.startswith(b"speak"):
                peer.answer(each)

    return script


def test_a_call_ends_at_its_deadline_and_the_host_is_told() -> None:
    heard: list[NumberedRequest] = []
    with ready(speak_when_asked(heard)) as (_, client):
        assert client.together([b"a", b"b"], 0.05) == [Code.DEADLINE_EXCEEDED] * 2
        assert client.call(b"speak") == b"framed:speak"
    asked = {each.number: each.budget for each in heard if each.request in {b"a", b"b"}}
    assert {each.number for each in heard if not each.request} == set(asked)
    assert all(budget <= 50 for budget in asked.values())


def test_a_cancelled_call_is_given_up_at_the_host() -> None:
    heard: list[NumberedRequest] = []
    with ready(speak_when_asked(heard)) as (_, client):
        call = client.begin(b"a")
        assert eventually(lambda: len(heard) == 1)
        call.cancel()
        assert eventually(lambda: len(heard) == 2)
        assert [(each.number, each.request) for each in heard] == [
            (heard[0].number, b"a"),
            (heard[0].number, b""),
        ]
        assert client.call(b"speak") == b"framed:speak"


def test_the_answer_to_a_call_that_was_given_up_is_dropped() -> None:
    def late(_: FramedDouble, peer: Peer) -> None:
        asked: list[NumberedRequest] = []
        for each in peer.each():
            if each.request:
                asked.append(each)
            else:
                peer.answer(asked.pop(0))  # the very one
            if each.request == b"speak":
                peer.answer(each)

    with ready(late) as (host, client):
        assert client.begin(b"a", 0.05).result(60) is Code.DEADLINE_EXCEEDED
        for _ in range(3):
            assert client.call(b"speak") == b"framed:speak"
        assert len(host.peers) == 1


def responses(*entries: NumberedResponse) -> bytes:
    return frames.encode_frame(
        Kind.MANY | ANSWER, SealedResponses(responses=entries).SerializeToString()
    )


def response(number: int) -> NumberedResponse:
    return NumberedResponse(number=number, response=b"lie")


BREAKS: dict[str, Callable[[NumberedRequest], bytes]] = {
    "unreadable": lambda _: frames.encode_frame(Kind.MANY | ANSWER, b"\xff\xff"),
    "a number never asked": lambda each: responses(response(each.number + 1000)),
    "number none": lambda _: responses(response(0)),
    "twice": lambda each: responses(response(each.number), response(each.number)),
    "another type": lambda _: frames.encode_frame(Kind.REQUEST | ANSWER, b"x"),
    "hello again": lambda _: frames.encode_frame(Kind.HELLO | ANSWER, b""),
    "a question": lambda _: frames.encode_frame(Kind.MANY, b""),
    "length below the head": lambda _: b"\x00\x00\x00\x04" + bytes([Kind.MANY | ANSWER]) + b"abcd",
    "length above the bound": lambda _: b"\xff\xff\xff\xff" + bytes([Kind.MANY | ANSWER]) + b"abcd",
    "an unreadable refusal": lambda _: frames.encode_frame(frames.ERROR, b"\xff\xff"),
}


@pytest.mark.parametrize("how", list(BREAKS))
def test_a_host_that_breaks_the_rules_loses_the_connection(how: str) -> None:
    heard: list[bytes] = []

    def break_(host: FramedDouble, peer: Peer) -> None:
        if len(host.peers) > 1:
            on_echo(host, peer)
            return
        held = list(itertools.islice(peer.each(), 4))
        peer.raw(BREAKS[how](held[0]))
        heard.append(peer.at_end())

    with ready(break_) as (host, client):
        ends = client.together([b"0", b"1", b"2", b"3"])
        assert ends.count(Code.UNAVAILABLE) >= 3
        assert set(ends) <= {Code.UNAVAILABLE, b"lie"}
        assert eventually(lambda: heard == [b""])
        assert client.call(b"after") == b"unary:after"
        assert eventually(lambda: client.call(b"after") == b"framed:after")
        assert len(host.peers) == 2


def test_that_a_host_broke_the_rules_is_said() -> None:
    def break_(_: FramedDouble, peer: Peer) -> None:
        next(peer.each())
        peer.raw(BREAKS["unreadable"](NumberedRequest()))
        peer.at_end()

    with ready(break_) as (_, client):
        with pytest.raises(RequestError, match="broke the rules") as raised:
            client.call(b"x")
        assert raised.value.code is Code.UNAVAILABLE


def last_words(peer: Peer, data: bytes) -> None:
    peer.raw(data)
    peer.end_sending()


ENDS: dict[str, Callable[[Peer], None]] = {
    "ended": lambda peer: peer.end_sending(),
    "within a frame": lambda peer: last_words(peer, responses(response(7))[:-1]),
    "reset": lambda peer: peer.reset(),
}


@pytest.mark.parametrize("how", list(ENDS))
def test_when_the_connection_ends_its_calls_fail_and_later_ones_find_another(how: str) -> None:
    def die(host: FramedDouble, peer: Peer) -> None:
        if len(host.peers) > 1:
            on_echo(host, peer)
            return
        list(itertools.islice(peer.each(), 4))
        ENDS[how](peer)

    with ready(die) as (host, client):
        assert client.together([b"0", b"1", b"2", b"3"]) == [Code.UNAVAILABLE] * 4
        assert eventually(lambda: client.call(b"x") == b"framed:x")
        assert len(host.peers) == 2


def test_a_connection_that_dies_idle_fails_no_call() -> None:
    def die(host: FramedDouble, peer: Peer) -> None:
        if len(host.peers) > 1:
            on_echo(host, peer)

    with ready(die) as (_, client):
        way = client.connection._framed._way
        assert way is not None
        assert eventually(lambda: way._many is None)
        assert client.call(b"x") == b"unary:x"
        assert eventually(lambda: client.call(b"x") == b"framed:x")


def test_a_connection_that_is_refused_tells_its_calls_why() -> None:
    def refuse(_: FramedDouble, peer: Peer) -> None:
        next(peer.each())
        peer.refuse("QUOTA_EXCEEDED", delay=2000)

    with ready(refuse) as (_, client):
        with pytest.raises(RequestError) as raised:
            client.call(b"x")
        assert raised.value.code is Code.QUOTA_EXCEEDED
        assert raised.value.retry_after_s == 2.0


def test_a_connection_that_the_host_wants_ended_ends_without_a_failed_call() -> None:
    def retire(host: FramedDouble, peer: Peer) -> None:
        for count, each in enumerate(peer.each()):
            if len(host.peers) <= 2:
                assert count <= 40 + 16, "asked after it was to end"
            peer.answer(each, last=count == 40)

    with ready(retire) as (host, client):

        def another() -> bool:
            ends = client.together([b"%d" % number for number in range(16)])
            assert not any(isinstance(end, Code) for end in ends)
            return len(host.peers) > 2

        assert eventually(another)
        assert eventually(lambda: host.peers[0].sock.fileno() < 0)


def test_a_connection_at_its_end_waits_for_what_was_asked() -> None:
    def retire(host: FramedDouble, peer: Peer) -> None:
        asked = list(itertools.islice(peer.each(), 2))
        peer.answer(asked[0], last=True)
        host.go.wait(60)
        peer.answer(asked[1])
        assert peer.take() is None

    with ready(retire) as (host, client):
        calls = [client.begin(b"0"), client.begin(b"1")]
        assert eventually(lambda: any(call.done() for call in calls))
        assert client.call(b"x") == b"unary:x"
        host.go.set()
        assert sorted(call.result(60) for call in calls) == [b"framed:0", b"framed:1"]


def test_a_host_that_reads_nothing_makes_the_client_keep_no_copy() -> None:
    """What the socket does not take stays with its calls, and leaves once the host reads."""

    def stall(host: FramedDouble, peer: Peer) -> None:
        host.go.wait(60)
        on_echo(host, peer)

    request = b"x" * limits.CALL_STREAM_REQUEST_MAX
    with ready(stall) as (host, client):
        way = client.connection._framed._way
        assert way is not None
        many = way._many
        assert many is not None
        calls = []
        while not many._wire.sending:
            calls += [client.begin(request) for _ in range(8)]
            client.tasks()
            assert len(calls) < 2000
        calls += [client.begin(request) for _ in range(100)]
        client.tasks()
        kept = sum(map(len, many._wire._rest))
        assert kept <= limits.CALL_STREAM_MESSAGE_MAX
        assert len(many._book._outbox) >= 50
        host.go.set()
        assert all(call.result(100) == b"framed:" + request for call in calls)


def test_calls_of_a_host_that_reads_nothing_end_at_their_deadlines() -> None:
    def stall(host: FramedDouble, peer: Peer) -> None:
        host.go.wait(100)

    request = b"x" * limits.CALL_STREAM_REQUEST_MAX
    with ready(stall) as (_, client):
        assert client.together([request] * 200, 0.2) == [Code.DEADLINE_EXCEEDED] * 200
        way = client.connection._framed._way
        assert way is not None
        assert way._many is not None
        outbox = way._many._book._outbox
        assert not any(each.request for each in outbox)


def test_echo_is_honest() -> None:
    with playing(echo) as host, LoopedConnection(host.target) as client:
        client.fetch_evidence()
        assert eventually(lambda: client.call(b"x") == b"framed:x")
