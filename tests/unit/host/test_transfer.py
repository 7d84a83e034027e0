"""Answers as they come in: whole, in pieces, cut anywhere, too large, or never."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from casemate import frames, limits
from casemate.errors import Code, FrameError
from casemate_host.transfer import receive_answer, set_timeout

if TYPE_CHECKING:
    from collections.abc import Iterator

WHOLE = b"\x00\x00\x00\x0a\x83\x00\x00\x00\x00hello"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        set_timeout(ours, 5)
        yield ours, theirs


def test_a_whole_answer(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(WHOLE)
    answer = receive_answer(ours)
    assert answer is not None
    assert (answer.type, answer.payload) == (0x83, b"hello")


def test_an_answer_in_single_bytes(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    def drip() -> None:
        for byte in WHOLE:
            theirs.sendall(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    answer = receive_answer(ours)
    thread.join()
    assert answer is not None
    assert answer.payload == b"hello"


@pytest.mark.parametrize("at", range(len(WHOLE)))
def test_cut_anywhere(pair: tuple[socket.socket, socket.socket], at: int) -> None:
    ours, theirs = pair
    theirs.sendall(WHOLE[:at])
    theirs.close()
    if at == 0:
        assert receive_answer(ours) is None
        return
    with pytest.raises(FrameError) as raised:
        receive_answer(ours)
    assert raised.value.code is Code.MALFORMED


@pytest.mark.parametrize(
    ("length", "code"),
    [(0, Code.MALFORMED), (4, Code.MALFORMED), (limits.FRAME_MAX + 1, Code.TOO_LARGE)],
)
def test_bad_lengths_take_no_memory(
    pair: tuple[socket.socket, socket.socket], length: int, code: Code
) -> None:
    ours, theirs = pair
    theirs.sendall(length.to_bytes(4, "big") + b"\x83\x00\x00\x00\x00")
    with pytest.raises(FrameError) as raised:
        receive_answer(ours)
    assert raised.value.code is code


@pytest.mark.parametrize("sent", [b"", WHOLE[:3], WHOLE[:-1]])
def test_silence_ends_in_time(pair: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    ours, theirs = pair
    set_timeout(ours, 0.05)
    theirs.sendall(sent)
    with pytest.raises(BlockingIOError):
        receive_answer(ours)


def test_sending_to_nobody_ends_in_time(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    set_timeout(ours, 0.05)
    with pytest.raises(BlockingIOError), contextlib.suppress(FrameError):
        frames.send_frame(ours, 3, bytes(5_000_000))
