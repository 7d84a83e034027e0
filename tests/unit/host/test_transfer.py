"""Answers as they come in: whole, in pieces, cut anywhere, too large, or never."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from casemate import frames, limits
from casemate.errors import Code, FrameError
from casemate_host.transfer import Connection, await_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[Connection, socket.socket]
WHOLE = b"\x00\x00\x00\x0a\x83\x00\x00\x00\x00hello"


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours)
        connection.set_timeout(60)
        yield connection, theirs


def test_a_whole_answer(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(WHOLE)
    answer = ours.receive()
    assert answer is not None
    assert (answer.type, answer.payload) == (0x83, b"hello")


def test_an_answer_in_single_bytes(pair: Pair) -> None:
    ours, theirs = pair

    def drip() -> None:
        for byte in WHOLE:
            theirs.sendall(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    answer = ours.receive()
    thread.join()
    assert answer is not None
    assert answer.payload == b"hello"


@pytest.mark.parametrize("at", range(len(WHOLE)))
def test_cut_anywhere(pair: Pair, at: int) -> None:
    ours, theirs = pair
    theirs.sendall(WHOLE[:at])
    theirs.close()
    if at == 0:
        assert ours.receive() is None
        return
    with pytest.raises(FrameError) as raised:
        ours.receive()
    assert raised.value.code is Code.MALFORMED


@pytest.mark.parametrize(
    ("length", "code"),
    [(0, Code.MALFORMED), (4, Code.MALFORMED), (limits.FRAME_MAX + 1, Code.TOO_LARGE)],
)
def test_bad_lengths_take_no_memory(pair: Pair, length: int, code: Code) -> None:
    ours, theirs = pair
    theirs.sendall(length.to_bytes(4, "big") + b"\x83\x00\x00\x00\x00")
    with pytest.raises(FrameError) as raised:
        ours.receive()
    assert raised.value.code is code


@pytest.mark.parametrize("sent", [b"", WHOLE[:3], WHOLE[:-1]])
def test_silence_ends_in_time(pair: Pair, sent: bytes) -> None:
    ours, theirs = pair
    ours.set_timeout(0.05)
    theirs.sendall(sent)
    with pytest.raises(BlockingIOError):
        ours.receive()


def test_sending_to_nobody_ends_in_time(pair: Pair) -> None:
    ours, _ = pair
    ours.set_timeout(0.05)
    with pytest.raises(BlockingIOError), contextlib.suppress(FrameError):
        frames.send_frame(ours.channel, 3, bytes(5_000_000))


def test_sizes_of_every_kind_over_one_connection(pair: Pair) -> None:
    """Small answers take another path than large ones, and either may follow the other."""
    ours, theirs = pair
    for size in (0, 1, 8182, 8183, 8184, 300_000, 0, 1_000_000, 1_000_000, 3):
        payload = (bytes(range(256)) * (size // 256 + 1))[:size]
        thread = threading.Thread(target=frames.send_frame, args=(theirs, 0x83, payload))
        thread.start()
        answer = ours.receive()
        thread.join()
        assert answer is not None
        assert answer.payload == payload


def test_two_answers_at_once_are_refused(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(WHOLE + WHOLE[:1])
    with pytest.raises(FrameError) as raised:
        ours.receive()
    assert raised.value.code is Code.MALFORMED


class VsockLike(socket.socket):
    """A unix socket that takes itself for vsock and refuses what Linux refuses there.

    net/vmw_vsock/af_vsock.c: ENOMEM for waiting for as many bytes as the buffer takes, 256 KiB.
    """

    family = socket.AF_VSOCK

    def recv(self, size: int, flags: int = 0) -> bytes:
        if flags & socket.MSG_WAITALL and size >= 256 * limits.KIB:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return super().recv(size, flags)


@pytest.mark.parametrize("size", [300_000, limits.FRAME_MAX - frames.COUNTED])
def test_large_answers_over_vsock(size: int) -> None:
    ours, theirs = socket.socketpair()
    payload = bytes(range(250)) * (size // 250)
    with VsockLike(fileno=ours.detach()) as channel, theirs:
        connection = Connection(channel)
        connection.set_timeout(60)
        frame = frames.FrameType.REQUEST | frames.ANSWER
        sender = threading.Thread(target=frames.send_frame, args=(theirs, frame, payload))
        sender.start()
        answer = connection.receive()
        sender.join()
    assert answer is not None
    assert answer.payload == payload


def test_a_peer_that_leaves_within_a_large_answer() -> None:
    ours, theirs = socket.socketpair()
    with VsockLike(fileno=ours.detach()) as channel, theirs:
        theirs.sendall(bytes(1000))
        theirs.close()
        assert await_bytes(channel, 300_000) == bytes(1000)
