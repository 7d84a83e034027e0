"""Numbered frames, however they arrive (SPEC 9.2.1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casemate import limits, numbered
from casemate.errors import Code, FrameError
from casemate.frames import Frame, FrameType
from casemate.numbered import FrameBuffer, Numbered

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/frames.json").read_text())
QUESTIONS = (FrameType.NUMBERED, numbered.QUESTION_MAX)


def expected(case: dict[str, Any]) -> Numbered:
    payload = bytes.fromhex(case["payload"])
    budget = case["budget"] or limits.FRAME_BUDGET_DEFAULT
    return Numbered(case["number"], case["type"], payload, budget)


@pytest.mark.parametrize("case", VECTORS["numbered"], ids=lambda case: case["number"])
def test_vectors(case: dict[str, Any]) -> None:
    asked = expected(case)
    question = numbered.question(asked.number, FrameType(asked.type), asked.payload, case["budget"])
    answer = numbered.answer(
        asked.number, asked.type | 0x80, (asked.payload[:9], asked.payload[9:])
    )
    assert b"".join(question).hex() == case["question"]
    assert b"".join(answer).hex() == case["answer"]
    buffer = FrameBuffer(*QUESTIONS)
    buffer.add(bytes.fromhex(case["question"]))
    assert buffer.take() == asked
    assert buffer.take() is None
    payload = bytes.fromhex(case["question"])[9:]
    assert numbered.first(Frame(32, asked.budget, memoryview(payload))) == asked


@pytest.mark.parametrize("case", VECTORS["cancels"], ids=lambda case: case["number"])
def test_cancel_frames(case: dict[str, Any]) -> None:
    whole = b"".join(numbered.cancel(case["number"]))
    assert whole.hex() == case["bytes"]
    buffer = FrameBuffer(*QUESTIONS)
    buffer.add(whole)
    frame = buffer.take()
    assert frame is not None
    assert frame[:3] == (case["number"], FrameType.CANCEL, b"")


@pytest.mark.parametrize("case", VECTORS["refused_numbered"], ids=lambda case: case["why"])
def test_refused(case: dict[str, Any]) -> None:
    buffer = FrameBuffer(*QUESTIONS)
    buffer.add(bytes.fromhex(case["bytes"]))
    with pytest.raises(FrameError) as refusal:
        buffer.take()
    assert refusal.value.code == case["code"]


@pytest.mark.parametrize("step", [1, 2, 13, 14, 15, 100, 400])
def test_frames_arrive_in_any_pieces(step: int) -> None:
    stream = b"".join(bytes.fromhex(case["question"]) for case in VECTORS["numbered"])
    buffer, taken = FrameBuffer(*QUESTIONS), []
    for at in range(0, len(stream), step):
        buffer.add(stream[at : at + step])
        while (frame := buffer.take()) is not None:
            taken.append(frame)
        assert buffer.begun == bool(buffer.rest)
    assert taken == [expected(case) for case in VECTORS["numbered"]]
    assert not buffer.begun


def test_a_frame_in_many_pieces_is_gathered_in_one_place() -> None:
    """Each piece is added to what is there, which is not copied for it."""
    payload = bytes(range(256)) * 256
    whole = b"".join(numbered.question(5, FrameType.REQUEST, payload, 0))
    buffer = FrameBuffer(*QUESTIONS)
    buffer.add(whole[:1])
    buffer.add(whole[1:2])
    gathered = buffer._data
    for at in range(2, len(whole)):
        assert buffer.take() is None
        buffer.add(whole[at : at + 1])
        assert buffer._data is gathered
    frame = buffer.take()
    assert frame is not None
    assert frame.payload == payload
    assert isinstance(frame.payload, bytes)
    assert len(buffer._data) == 0  # and nothing of it stays


def test_what_is_missing_is_known_from_the_head_on() -> None:
    whole = b"".join(numbered.question(5, FrameType.REQUEST, b"x" * 1000, 0))
    buffer = FrameBuffer(*QUESTIONS)
    buffer.add(whole[:13])
    assert buffer.missing == 0
    buffer.add(whole[13:20])
    assert buffer.missing == len(whole) - 20
    buffer.add(whole[20:] + b"rest")
    assert buffer.missing == 0
    assert buffer.take() is not None
    assert buffer.rest == b"rest"


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\0\0\0\1", Code.MALFORMED),
        (bytes(5 + limits.NUMBERED_MAX + 1), Code.TOO_LARGE),
    ],
)
def test_a_first_frame_out_of_bounds_is_refused(payload: bytes, code: Code) -> None:
    with pytest.raises(FrameError) as refusal:
        numbered.first(Frame(32, 1000, memoryview(payload)))
    assert refusal.value.code is code
