from __future__ import annotations

import os
import socket
import struct
import threading
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from casemate import frames, limits
from casemate.errors import CasemateError, Code, FrameError
from casemate.frames import FrameType

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(60)
        far.settimeout(60)
        yield near, far


Pair = tuple[socket.socket, socket.socket]


@pytest.mark.parametrize("size", [0, 1, 5, MIB - 1, MIB, MIB + 1, 5 * MIB + 3])
def test_a_frame_arrives_as_it_was_sent(pair: Pair, size: int) -> None:
    payload = os.urandom(size)
    sender = threading.Thread(
        target=frames.send_frame, args=(pair[0], FrameType.REQUEST, payload, 1234)
    )
    sender.start()
    frame = frames.receive_frame(pair[1])
    sender.join()
    assert frame is not None
    assert (frame.type, frame.budget, bytes(frame.payload)) == (3, 1234, payload)


def test_pieces_are_sent_as_one_payload(pair: Pair) -> None:
    frames.send_frame(pair[0], FrameType.REQUEST, (b"a", b"", memoryview(b"bc")))
    frame = frames.receive_frame(pair[1])
    assert frame is not None
    assert bytes(frame.payload) == b"abc"


@pytest.mark.parametrize("size", [1, MIB + 16])
def test_part_of_a_file_is_sent_as_one_frame(pair: Pair, tmp_path: Path, size: int) -> None:
    content = os.urandom(size + 10)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        part = (file, 7, size)
        kind = FrameType.MODEL_DATA
        sender = threading.Thread(target=frames.send_file, args=(pair[0], kind, part, 1234))
        sender.start()
        frame = frames.receive_frame(pair[1])
        sender.join()
        with pytest.raises(FrameError, match="shorter"):
            frames.send_file(pair[0], kind, (file, size + 5, 6))
    assert frame is not None
    assert (frame.type, frame.budget, bytes(frame.payload)) == (kind, 1234, content[7 : 7 + size])


def test_no_budget_means_the_default(pair: Pair) -> None:
    frames.send_frame(pair[0], FrameType.HEALTH, b"")
    frame = frames.receive_frame(pair[1])
    assert frame is not None
    assert frame.budget == limits.FRAME_BUDGET_DEFAULT


def test_closing_between_frames_is_the_end(pair: Pair) -> None:
    pair[0].close()
    assert frames.receive_frame(pair[1]) is None


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x00\x00", Code.MALFORMED),
        (struct.pack(">IBI", 4, 3, 0), Code.MALFORMED),
        (struct.pack(">IBI", 10, 3, 0) + b"abc", Code.MALFORMED),
        (struct.pack(">IBI", 0xFFFFFFFF, 3, 0), Code.TOO_LARGE),
        (struct.pack(">IBI", limits.FRAME_MAX + 1, 3, 0), Code.TOO_LARGE),
    ],
    ids=["cut head", "below the head", "cut payload", "4 GiB", "above the bound"],
)
def test_bad_frames_are_refused(pair: Pair, sent: bytes, code: Code) -> None:
    pair[0].sendall(sent)
    pair[0].close()
    with pytest.raises(CasemateError) as caught:
        frames.receive_frame(pair[1])
    assert caught.value.code is code


def test_announcing_a_long_frame_takes_no_memory(pair: Pair) -> None:
    pair[0].sendall(struct.pack(">IBI", limits.FRAME_MAX, 3, 0) + b"x")
    tracemalloc.start()
    try:
        with pytest.raises(TimeoutError):
            frames.receive_frame(pair[1], idle_s=1, within_s=0.2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * MIB


@pytest.mark.parametrize("size", [0, 1, 600_000, limits.MODEL_DATA_MAX, limits.MODEL_DATA_MAX + 1])
def test_a_payload_lies_in_memory_of_the_receiver(pair: Pair, size: int) -> None:
    given: list[memoryview] = []

    def memory(size: int) -> memoryview:
        given.append(memoryview(bytearray(b"?" * size)))
        return given[-1]

    payload = os.urandom(size)
    sender = threading.Thread(target=frames.send_frame, args=(pair[0], 3, payload))
    sender.start()
    frame = frames.receive_frame(pair[1], memory=memory)
    sender.join()
    assert frame is not None
    assert frame.payload == payload
    # One as long as it says it is might never come.
    assert [len(room) for room in given] == ([size] if size <= limits.MODEL_DATA_MAX else [])


def test_a_cut_payload_is_not_given_to_anybody(pair: Pair) -> None:
    """What the memory held before, which may be of another request, goes nowhere."""
    pair[0].sendall(struct.pack(">IBI", 1005, 3, 0) + bytes(999))
    pair[0].close()
    with pytest.raises(FrameError) as caught:
        frames.receive_frame(pair[1], memory=lambda size: memoryview(bytearray(b"?" * size)))
    assert caught.value.code is Code.MALFORMED


def test_an_error_answer_is_raised_with_its_code(pair: Pair) -> None:
    frames.send_error(pair[0], Code.REPLAYED, "seen")
    with pytest.raises(CasemateError) as caught:
        frames.expect_answer(pair[1], FrameType.REQUEST)
    assert (caught.value.code, caught.value.detail) == (Code.REPLAYED, "seen")


@pytest.mark.parametrize("payload", [b"", b"\xa1", b"\xa2dcodebNOfdetail`"])
def test_an_error_answer_that_cannot_be_read_is_malformed(pair: Pair, payload: bytes) -> None:
    frames.send_frame(pair[0], frames.ERROR, payload)
    with pytest.raises(CasemateError) as caught:
        frames.expect_answer(pair[1], FrameType.REQUEST)
    assert caught.value.code is Code.MALFORMED


def test_an_answer_of_another_type_is_refused(pair: Pair) -> None:
    frames.send_frame(pair[0], FrameType.HEALTH | frames.ANSWER, b"")
    with pytest.raises(CasemateError):
        frames.expect_answer(pair[1], FrameType.REQUEST)
