"""Frames over a connected socket: in pieces, at once, too slow, and ended (SPEC 9.6.3)."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from casemate import framed, limits
from casemate.errors import CasemateError, Code, FrameError
from casemate.framed import Kind
from casemate.frames import ANSWER, ERROR, encode_frame
from casemate.v1.confidential_inference_pb2 import Refusal
from casemate_host.framed_channel import FramedChannel, GoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGE = bytes(range(256)) * 65_536  # 16 MiB: more than the kernel keeps for who does not read


@contextlib.contextmanager
def pair(within_s: float = 30.0) -> Iterator[tuple[FramedChannel, socket.socket]]:
    """The host's end of a connection over loopback, and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=60)
        accepted, _ = listener.accept()
    channel = FramedChannel(accepted, within_s)
    try:
        yield channel, client
    finally:
        client.close()
        channel.close()


def drip(client: socket.socket, data: bytes, step: int, pause_s: float = 0.01) -> None:
    with contextlib.suppress(OSError):
        for at in range(0, len(data), step):
            client.sendall(data[at : at + step])
            time.sleep(pause_s)


def aside(do: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


def received(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := client.recv(size - len(data))):
        data += piece
    return bytes(data)


@pytest.mark.parametrize("words", ["", "Bearer token-of-the-clinic-0001"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_hello_may_come_in_pieces(words: str, step: int) -> None:
    with pair() as (channel, client):
        sender = aside(lambda: drip(client, framed.hello(words), step, 0.001))
        assert channel.hello() == words
        sender.join()


def test_a_frame_that_comes_in_pieces_is_whole() -> None:
    with pair() as (channel, client):
        data = encode_frame(Kind.REQUEST, b"0123456789" * 10, 1234)
        sender = aside(lambda: drip(client, data, 3, 0.001))
        size, kind, budget = channel.head(60)
        assert (size, kind, budget) == (100, Kind.REQUEST, 1234)
        assert channel.payload(size) == b"0123456789" * 10
        sender.join()


def test_what_drips_in_has_its_time_as_a_whole() -> None:
    with pair(within_s=0.5) as (channel, client):
        aside(lambda: drip(client, encode_frame(Kind.REQUEST, bytes(1000)), 1))
        begun = time.monotonic()
        with pytest.raises(FrameError) as raised:
            channel.payload(channel.head(60)[0])
        assert raised.value.code is Code.DEADLINE_EXCEEDED
        assert time.monotonic() - begun < 30


def test_silence_and_an_end_are_told_apart() -> None:
    with pair() as (channel, client):
        with pytest.raises(TimeoutError):
            channel.head(0.1)
        client.sendall(b"\0\0")
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(GoneError):
            channel.head(60)
        with pytest.raises(GoneError):
            channel.payload(5)
        with pytest.raises(GoneError):
            channel.discard(5)


def test_what_is_discarded_leaves_the_next_frame() -> None:
    with pair() as (channel, client):
        sender = aside(lambda: client.sendall(LARGE + encode_frame(Kind.REQUEST, b"next")))
        channel.discard(len(LARGE))
        assert channel.payload(channel.head(60)[0]) == b"next"
        sender.join()


@pytest.mark.parametrize("size", [0, 1, 16 * limits.KIB, 16 * limits.KIB + 1, len(LARGE)])
def test_an_answer_is_sent_at_once_or_finished_while_it_is_taken(size: int) -> None:
    with pair() as (channel, client):
        rest = channel.begin(Kind.REQUEST | ANSWER, LARGE[:size])
        assert (rest is None) == (size < limits.MIB)
        sender = aside(lambda: channel.finish(rest))
        expected = encode_frame(Kind.REQUEST | ANSWER, LARGE[:size])
        assert received(client, len(expected)) == expected
        sender.join()


def test_an_answer_that_is_not_taken_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRAMED_READ_S", 0.3)
    with pair() as (channel, _), pytest.raises(TimeoutError):
        channel.send(Kind.REQUEST | ANSWER, LARGE)


def test_an_answer_of_which_little_is_taken_has_its_time_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "FRAMED_READ_S", 1.0)
    stop = threading.Event()

    def nibble(client: socket.socket) -> None:
        while not stop.is_set() and client.recv(200_000):
            time.sleep(0.1)

    with pair() as (channel, client):
        reader = aside(lambda: nibble(client))
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            channel.send(Kind.REQUEST | ANSWER, LARGE * 2)
        assert time.monotonic() - begun < 30
        stop.set()
        client.shutdown(socket.SHUT_RDWR)
        reader.join()


def test_the_last_word_is_said_once_and_is_the_last() -> None:
    with pair() as (channel, client):
        for detail in ("first", "second"):
            channel.farewell(CasemateError(Code.UNAVAILABLE, detail))
        client.sendall(bytes(100_000))
        client.shutdown(socket.SHUT_WR)
        channel.linger()
        channel.close()
        data = received(client, 1000)
        assert data[4] == ERROR
        assert Refusal.FromString(data[9:]).detail == "first"


def messages(channel: FramedChannel) -> list[bytes]:
    return list(channel.messages(Kind.MANY, 1000))


def test_messages_are_read_until_the_clients_end() -> None:
    with pair() as (channel, client):
        sent = [b"%d" % number * number for number in range(300)]
        data = b"".join(encode_frame(Kind.MANY, payload) for payload in sent)

        def send() -> None:
            drip(client, data, 1500, 0)
            client.shutdown(socket.SHUT_WR)

        sender = aside(send)
        assert messages(channel) == sent
        sender.join()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encode_frame(Kind.REQUEST, b"x"), Code.MALFORMED),
        (encode_frame(Kind.MANY, bytes(1001)), Code.TOO_LARGE),
        (b"\0\0\0\4\x22\0\0\0\0", Code.MALFORMED),
        (b"\xff" * 9, Code.TOO_LARGE),
    ],
)
def test_another_frame_among_messages_is_refused(data: bytes, code: Code) -> None:
    with pair() as (channel, client):
        client.sendall(encode_frame(Kind.MANY, b"good") + data)
        with pytest.raises(FrameError) as raised:
            messages(channel)
        assert raised.value.code is code


def test_half_a_message_at_the_end_is_none() -> None:
    with pair() as (channel, client):
        client.sendall(encode_frame(Kind.MANY, b"good") + encode_frame(Kind.MANY, b"cut")[:-1])
        client.shutdown(socket.SHUT_WR)
        found = channel.messages(Kind.MANY, 1000)
        assert next(found) == b"good"
        with pytest.raises(GoneError):
            next(found)
