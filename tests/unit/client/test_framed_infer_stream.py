"""A stream on a framed connection of its own (SPEC 9.6.3), for threads and for event loops."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from casemate import frames, limits
from casemate.errors import Code, FrameError, RequestError
from casemate.framed import Kind, Offer
from casemate.frames import ANSWER, ERROR
from tests.support.attacker import eventually
from tests.support.framed_host import STREAM_ANSWER, FramedDouble, Peer, echo, playing
from tests.support.host_streams import Blocking, Looped
from tests.support.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = bytes(limits.STREAM_MESSAGE_MAX - len(b"framed:"))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has failed is not tried again, and nothing times out, because the machine is slow."""
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 600.0)
    monkeypatch.setattr(limits, "FRAMED_CONNECT_S", 60.0)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No sender outlives its stream."""
    yield
    assert eventually(lambda: "framed-stream" not in {t.name for t in threading.enumerate()})


@pytest.fixture(params=[Blocking, Looped], ids=["threads", "loop"])
def kind(request: pytest.FixtureRequest) -> Any:  # noqa: ANN401 - of two classes with the same methods
    return request.param


class Heard:
    """Answers like `echo`, does ``act`` at a frame that says ``now``, and keeps all frames."""

    def __init__(self, act: Callable[[Peer], object] = lambda _: None) -> None:
        self._act = act
        self.frames: list[frames.Frame] = []
        self.ends = 0

    def __call__(self, _: FramedDouble, peer: Peer) -> None:
        peer.begin()
        with contextlib.suppress(FrameError):  # the client may end within a frame
            while (frame := peer.take()) is not None:
                self.frames.append(frame)
                if bytes(frame.payload) == b"now":
                    self._act(peer)
                else:
                    peer.echo(frame)
        self.ends += 1


def by_grpc(connection: Any, *messages: bytes) -> bool:  # noqa: ANN401
    """Whether a stream goes by gRPC, whole and in order."""
    said = connection.stream().say(*messages).end()
    return bool(said.rest() == b"".join(b"grpc:" + each for each in messages))


def test_a_stream_is_frames_one_for_each_message(kind: Any) -> None:  # noqa: ANN401
    heard = Heard()
    with playing(heard) as host, kind(host.target) as connection:
        stream = connection.stream(50)
        for message in (b"one", b"two", b"three"):
            assert stream.say(message).take() == b"framed:" + message
        assert stream.end().take() is None
        assert eventually(lambda: heard.ends == 1)
        first, *others = heard.frames
        assert {frame.type for frame in heard.frames} == {Kind.STREAM}
        assert [bytes(frame.payload) for frame in heard.frames] == [b"one", b"two", b"three", b""]
        assert 40_000 < first.budget <= 50_000
        assert {frame.budget for frame in others} == {limits.FRAME_BUDGET_DEFAULT}  # none said
        assert host.infer_streams == 0


def test_each_stream_has_a_connection_of_its_own(kind: Any) -> None:  # noqa: ANN401
    with playing() as host, kind(host.target) as connection:
        streams = [connection.stream() for _ in range(3)]
        for number, stream in enumerate(streams):
            stream.say(b"%d" % number).end()
        assert [each.rest() for each in streams] == [b"framed:0", b"framed:1", b"framed:2"]
        assert len(host.peers) == 3


def test_a_stream_without_messages_has_an_end(kind: Any) -> None:  # noqa: ANN401
    with playing() as host, kind(host.target) as connection:
        assert connection.stream().end().rest() == b""


def test_without_an_offer_a_stream_goes_by_grpc(kind: Any) -> None:  # noqa: ANN401
    with playing() as host:
        host.offered = ""
        with kind(host.target) as connection:
            assert by_grpc(connection, b"one", b"two")
        assert host.peers == []


FALSE_GREETINGS: dict[str, Callable[[Offer], bytes]] = {
    "another host's id": lambda offer: Offer.new(offer.port).greeting,
    "another version": lambda offer: frames.encode_frame(Kind.HELLO, b"\x02" + offer.host_id),
    "too short": lambda offer: offer.greeting[:-1],
    "nothing": lambda _: b"",
    "another service": lambda _: b"SSH-2.0-OpenSSH_9.9 and more\r\n",
}


@pytest.mark.parametrize("how", list(FALSE_GREETINGS))
def test_not_a_byte_goes_to_whoever_greets_otherwise(kind: Any, how: str) -> None:  # noqa: ANN401
    heard: list[bytes] = []

    def another(_: FramedDouble, peer: Peer) -> None:
        peer.raw(FALSE_GREETINGS[how](peer.offer))
        peer.end_sending()
        heard.append(peer.at_end())

    with playing(another) as host, kind(host.target) as connection:
        for _ in range(2):  # it is not tried again at once
            assert by_grpc(connection, b"one", b"two")
    assert heard == [b""]


REFUSALS: dict[str, Callable[[Peer], None]] = {
    "refused": lambda peer: peer.refuse("OVERLOADED"),
    "another type": lambda peer: peer.send(STREAM_ANSWER),
    "ended": lambda peer: peer.end_sending(),
    "reset": lambda peer: peer.reset(),
}


@pytest.mark.parametrize("how", list(REFUSALS))
def test_a_client_that_is_refused_has_asked_nothing(kind: Any, how: str) -> None:  # noqa: ANN401
    heard: list[bytes] = []

    def refuse(_: FramedDouble, peer: Peer) -> None:
        peer.raw(peer.offer.greeting)
        assert peer.take() is not None
        REFUSALS[how](peer)
        heard.append(b"" if how == "reset" else peer.at_end())

    with playing(refuse) as host, kind(host.target) as connection:
        for _ in range(2):
            assert by_grpc(connection, b"one", b"two")
    assert heard == [b""]


def test_a_client_that_finds_nobody_goes_by_grpc(kind: Any) -> None:  # noqa: ANN401
    with playing() as host, socket.create_server(("127.0.0.1", 0)) as taken:
        host.offered = Offer.new(taken.getsockname()[1]).text
        taken.close()
        with kind(host.target) as connection:
            assert by_grpc(connection, b"one", b"two")


def test_whoever_says_nothing_is_left_in_time(
    kind: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def heard(seconds: float) -> list[bytes]:
        """What the host heard of whoever waits so long; nothing if there was no time to connect."""
        monkeypatch.setattr(limits, "FRAMED_CONNECT_S", seconds)
        said: list[bytes] = []
        with (
            playing(lambda _, peer: said.append(peer.at_end())) as host,
            kind(host.target) as connection,
        ):
            for _ in range(2):
                assert by_grpc(connection, b"one", b"two")
            eventually(lambda: bool(said), 10 * seconds)
        return said

    assert patiently(heard, bool) == [b""]


def test_what_led_nowhere_is_tried_again_later(
    kind: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CALL_STREAM_AGAIN_S", 0.0)

    def better(host: FramedDouble, peer: Peer) -> None:
        if len(host.peers) > 1:
            echo(host, peer)

    with playing(better) as host, kind(host.target) as connection:
        assert by_grpc(connection, b"one")
        assert connection.stream().say(b"one").end().rest() == b"framed:one"


def hold_the_greeting(host: FramedDouble, peer: Peer) -> None:
    """Greet only when the test goes on."""
    host.go.wait(60)
    echo(host, peer)


def test_nothing_waits_for_the_connection_but_the_stream(kind: Any) -> None:  # noqa: ANN401
    """Neither whoever begins it, nor is a message taken before there is somebody to send it to."""
    with playing(hold_the_greeting) as host, kind(host.target) as connection:
        stream = connection.stream().say(b"one").end()
        assert eventually(lambda: bool(host.peers))
        time.sleep(0.1)
        assert stream.asked == 0
        host.go.set()
        assert stream.rest() == b"framed:one"


def test_a_stream_with_little_time_leaves_half_of_it_to_grpc(kind: Any) -> None:  # noqa: ANN401
    """That there was no time to connect says nothing of the host."""
    with playing(hold_the_greeting) as host, kind(host.target) as connection:

        def answer(seconds: float) -> bytes | Code:
            outcome: bytes | Code = connection.stream(seconds).say(b"one").end().outcome()
            return outcome

        assert patiently(answer, lambda it: it == b"grpc:one", (2, 10, 50)) == b"grpc:one"
        host.go.set()
        assert connection.stream().say(b"one").end().rest() == b"framed:one"


def test_the_deadline_is_the_clients_own(kind: Any) -> None:  # noqa: ANN401
    def ends(seconds: float) -> int:
        """How many streams of frames were ended; none if there was no time to begin one."""
        heard = Heard()
        with playing(heard) as host, kind(host.target) as connection:
            stream = connection.stream(seconds).say(b"now")
            assert stream.outcome() is Code.DEADLINE_EXCEEDED
            stream.cancel()
            eventually(lambda: heard.ends == 1, 4 * seconds)
            return heard.ends

    assert patiently(ends, bool, (0.5, 5, 50)) == 1


def test_a_host_that_always_says_something_does_not_move_the_deadline(kind: Any) -> None:  # noqa: ANN401
    def chatter(peer: Peer) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer.sock.sendall(frames.encode_frame(STREAM_ANSWER, b"x"))
                time.sleep(0.01)

    with playing(Heard(chatter)) as host, kind(host.target) as connection:
        assert connection.stream(0.5).say(b"now").outcome() is Code.DEADLINE_EXCEEDED


def test_what_the_host_ends_it_with_is_said(kind: Any) -> None:  # noqa: ANN401
    def refuse(peer: Peer) -> None:
        peer.send(STREAM_ANSWER, b"before")
        peer.refuse("QUOTA_EXCEEDED", "no\x1b[2J", 1500)

    with playing(Heard(refuse)) as host, kind(host.target) as connection:
        stream = connection.stream().say(b"now").end()
        assert stream.take() == b"before"
        with pytest.raises(RequestError) as raised:
            stream.take()
        assert (raised.value.code, raised.value.retry_after_s) == (Code.QUOTA_EXCEEDED, 1.5)
        assert "\x1b" not in str(raised.value)
        assert host.infer_streams == 0


def _last_words(peer: Peer, data: bytes) -> None:
    peer.raw(data)
    peer.end_sending()


BREAKS: dict[str, Callable[[Peer], object]] = {
    "another type": lambda peer: peer.send(Kind.MANY | ANSWER, b"x"),
    "a type of the client's": lambda peer: peer.send(Kind.STREAM, b"x"),
    "a length too short": lambda peer: peer.raw(b"\0\0\0\4\x84\0\0\0\0"),
    "a length out of bounds": lambda peer: peer.raw(
        frames.encode_head(STREAM_ANSWER, limits.STREAM_MESSAGE_MAX + 1)
    ),
    "a refusal that cannot be read": lambda peer: peer.send(ERROR, b"\xff\xff"),
    "the end": lambda peer: peer.end_sending(),
    "the end within a head": lambda peer: _last_words(peer, b"\0\0"),
    "the end within a message": lambda peer: _last_words(
        peer, frames.encode_head(STREAM_ANSWER, 1000) + b"part"
    ),
    "a reset": lambda peer: peer.reset(),
}


@pytest.mark.parametrize("how", list(BREAKS))
def test_a_host_that_breaks_the_rules_loses_the_stream(kind: Any, how: str) -> None:  # noqa: ANN401
    """It is not repeated, by gRPC neither: its questions may have been answered."""

    def act(peer: Peer) -> None:
        BREAKS[how](peer)
        with contextlib.suppress(OSError):
            assert peer.at_end() == b""

    with playing(Heard(act)) as host, kind(host.target) as connection:
        stream = connection.stream().say(b"one")
        assert stream.take() == b"framed:one"
        stream.say(b"now")
        assert stream.outcome() is Code.UNAVAILABLE
        assert (len(host.peers), host.infer_streams) == (1, 0)
        assert connection.stream().say(b"two").end().rest() == b"framed:two"


def test_frames_may_come_in_pieces(kind: Any) -> None:  # noqa: ANN401
    def dribble(peer: Peer) -> None:
        for byte in frames.encode_frame(STREAM_ANSWER, b"in pieces"):
            peer.raw(bytes([byte]))

    with playing(Heard(dribble)) as host, kind(host.target) as connection:
        assert connection.stream().say(b"now").end().rest() == b"in pieces"


def test_what_came_together_is_one_message(kind: Any) -> None:  # noqa: ANN401
    """SPEC 9.3.2: messages may be joined."""

    def at_once(peer: Peer) -> None:
        each = (b"one", b"two", b"three", b"")
        peer.raw(b"".join(frames.encode_frame(STREAM_ANSWER, words) for words in each))

    with playing(Heard(at_once)) as host, kind(host.target) as connection:
        stream = connection.stream().say(b"now").end()
        assert stream.take() == b"onetwothree"
        assert stream.take() is None


def test_long_messages_arrive_whole(kind: Any) -> None:  # noqa: ANN401
    with playing() as host, kind(host.target) as connection:
        stream = connection.stream()
        for _ in range(3):
            assert stream.say(LONG).until(7 + len(LONG)) == b"framed:" + LONG
            assert stream.say(b"short").take() == b"framed:short"
        assert stream.end().take() is None


class Deaf:
    """Reads nothing until the test goes on."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, host: FramedDouble, peer: Peer) -> None:
        peer.begin()
        self.go.wait(60)
        with contextlib.suppress(FrameError):
            while (frame := peer.take()) is not None:
                peer.echo(frame)


def test_a_host_that_takes_nothing_for_long_is_sent_no_more_and_not_left(
    kind: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SPEC 9.6.3: whoever is slow holds back the stream for as long as its budget lasts."""
    monkeypatch.setattr(limits, "FRAMED_READ_S", 0.3)
    deaf, count = Deaf(), 16
    with playing(deaf) as host, kind(host.target) as connection:
        stream = connection.stream().say(*[LONG] * count).end()
        assert eventually(lambda: stream.asked > 0)
        time.sleep(1.5)
        assert stream.asked < count
        deaf.go.set()
        assert len(stream.rest()) == count * (7 + len(LONG))


def test_while_nobody_takes_nothing_is_read(kind: Any) -> None:  # noqa: ANN401
    sent, count = [0], 32

    def many(peer: Peer) -> None:
        for _ in range(count):
            peer.send(STREAM_ANSWER, LONG)
            sent[0] += 1

    with playing(Heard(many)) as host, kind(host.target) as connection:
        stream = connection.stream().say(b"now").end()
        assert eventually(lambda: sent[0] > 0)
        time.sleep(0.3)
        assert sent[0] < count
        assert len(stream.rest()) == count * len(LONG)


def cancelled_while(connection: Any, stream: Any, ready: Callable[[], bool]) -> None:  # noqa: ANN401
    """Cancel once ``ready``, and see that whoever takes hears so."""
    outcomes: list[bytes | Code] = []
    taker = threading.Thread(target=lambda: outcomes.append(stream.outcome()))
    taker.start()
    assert eventually(ready)
    stream.cancel()
    taker.join(60)
    assert outcomes == [Code.UNAVAILABLE]
    assert stream.outcome() is Code.UNAVAILABLE


def is_reset(peer: Peer) -> bool:
    """Whether the host hears of the client's end without reading what lies before it."""
    poll = select.poll()
    poll.register(peer.sock, 0)
    return any(event & select.POLLERR for _, event in poll.poll(30_000))


def test_cancelling_ends_a_stream_that_waits_for_an_answer(kind: Any) -> None:  # noqa: ANN401
    heard = Heard()
    with playing(heard) as host, kind(host.target) as connection:
        stream = connection.stream().say(b"now")
        cancelled_while(connection, stream, lambda: bool(heard.frames))
        assert eventually(lambda: heard.ends == 1)


def test_cancelling_ends_a_stream_that_connects(kind: Any) -> None:  # noqa: ANN401
    with playing(hold_the_greeting) as host, kind(host.target) as connection:
        stream = connection.stream().say(b"one")
        cancelled_while(connection, stream, lambda: bool(host.peers))
        host.go.set()
        assert connection.stream().say(b"one").end().rest() == b"framed:one"
        assert host.infer_streams == 0


def test_cancelling_ends_a_stream_that_cannot_send(kind: Any) -> None:  # noqa: ANN401
    deaf = Deaf()
    with playing(deaf) as host, kind(host.target) as connection:
        stream = connection.stream().say(*[LONG] * 16)
        cancelled_while(connection, stream, lambda: stream.asked > 1)
        assert is_reset(host.peers[0])  # though it reads nothing
        deaf.go.set()


def test_cancelling_ends_a_stream_that_went_by_grpc(kind: Any) -> None:  # noqa: ANN401
    with playing(lambda _, peer: peer.sock.close()) as host, kind(host.target) as connection:
        stream = connection.stream().say(b"one")
        assert stream.take() == b"grpc:one"
        stream.cancel()
        assert stream.outcome() is Code.UNAVAILABLE


def test_closing_the_client_ends_its_streams(kind: Any) -> None:  # noqa: ANN401
    heard = Heard()
    with playing(heard) as host, kind(host.target) as connection:
        stream = connection.stream().say(b"now")
        assert eventually(lambda: bool(heard.frames))
        connection.close()
        assert stream.outcome() is Code.UNAVAILABLE
        assert eventually(lambda: heard.ends == 1)
        stream.end()


def test_what_cannot_be_sealed_ends_the_stream(kind: Any) -> None:  # noqa: ANN401
    heard = Heard()
    with playing(heard) as host, kind(host.target) as connection:
        stream = connection.stream().say(b"one")
        assert stream.take() == b"framed:one"
        stream.fail()
        assert stream.outcome() is Code.UNAVAILABLE
        assert eventually(lambda: heard.ends == 1)
        assert [bytes(frame.payload) for frame in heard.frames] == [b"one"]


def test_with_a_new_offer_a_stream_goes_on(kind: Any) -> None:  # noqa: ANN401
    with playing() as host, kind(host.target) as connection:
        stream = connection.stream().say(b"one")
        assert stream.take() == b"framed:one"
        host.offered = ""
        connection.fetch_evidence()
        assert stream.say(b"two").take() == b"framed:two"
        assert stream.end().take() is None
