"""What becomes of each of several questions in one request (SPEC 5.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casemate import cbor, limits, wire
from casemate.envelope import opening, questions, units
from casemate.envelope.chunks import seal_content
from casemate.envelope.failure import answer_open_failed
from casemate.envelope.messages import Trailer
from casemate.errors import Code, EnvelopeError, SealedStatusError
from tests.support import envelope as env

if TYPE_CHECKING:
    from casemate.envelope.sealing import SealedCall

OTHERS: tuple[wire.Pieces, ...] = [b"se", b"cond"], [b"third"]


def part(pieces: wire.Pieces) -> memoryview:
    return memoryview(b"".join(pieces))


def refusal(**fields: object) -> memoryview:
    return memoryview(b"\1" + cbor.encode({"status": "OVERLOADED", "detail": "", **fields}))


def test_an_answered_question_shows_its_message() -> None:
    assert bytes(questions.read(part(questions.answered([b"me", b"ssage"])))) == b"message"


def test_a_refused_question_says_why_and_no_more_than_fits() -> None:
    made = part(questions.refused(Code.INVALID_INPUT, "ä" * 400))
    with pytest.raises(SealedStatusError) as refused:
        questions.read(made)
    assert refused.value.code is Code.INVALID_INPUT
    assert refused.value.detail == "ä" * (limits.DETAIL_MAX // 2)


@pytest.mark.parametrize("code", [Code.OK, Code.REPLAYED])
def test_only_a_sealed_refusal_is_one(code: Code) -> None:
    with pytest.raises(ValueError, match="refusal"):
        questions.refused(code, "")


@pytest.mark.parametrize(
    "made",
    [
        memoryview(b"\0"),
        memoryview(b"\2message"),
        memoryview(b"\1"),
        memoryview(b"\1\xff"),
        memoryview(b"\2" + cbor.encode({"status": "OVERLOADED", "detail": ""})),
        refusal(status="OK"),
        refusal(status="REPLAYED"),
        refusal(status="no code"),
        refusal(status=1),
        refusal(detail="x" * (limits.DETAIL_MAX + 1)),
        refusal(more=1),
        refusal(detail="x" * 2000),
    ],
)
def test_what_is_neither_is_refused_as_an_answer_that_does_not_open(made: memoryview) -> None:
    with pytest.raises(EnvelopeError) as caught:
        questions.read(made)
    assert str(caught.value) == str(answer_open_failed())


def several() -> SealedCall:
    return env.hpke_session().seal(
        model="wdbc", version=7, digest=None, message=b"first", others=OTHERS
    )


def test_several_questions_are_sealed_and_opened_as_one_request() -> None:
    call = several()
    opened = env.open_sealed(call.header, call.ciphertext)
    assert [*map(bytes, opened.messages)] == [b"first", b"second", b"third"]
    header, ciphertext = opening.seal_response(
        opened,
        instance_digest=env.INSTANCE_DIGEST,
        messages=[b"one", [b"t", b"wo"], b"three"],
        trailer=env.ANSWERED,
        floor=0,
    )
    answer = call.open(header, ciphertext)
    assert [*map(bytes, answer.messages)] == [b"one", b"two", b"three"]


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_an_enclave_answers_every_question_or_none(count: int) -> None:
    call = several()
    opened = env.open_sealed(call.header, call.ciphertext)
    with pytest.raises(ValueError, match="status OK"):
        opening.seal_response(
            opened,
            instance_digest=env.INSTANCE_DIGEST,
            messages=[b"x"] * count,
            trailer=env.ANSWERED,
            floor=0,
        )


def forged(call: SealedCall, messages: list[bytes], trailer: Trailer) -> env.Answer:
    opened = env.open_sealed(call.header, call.ciphertext)
    header = b"\x01" + bytes(32) + env.INSTANCE_DIGEST
    rh = wire.digest(header)
    unit = units.response_unit(messages, trailer.encode(), 0).whole()
    return env.Answer(header, seal_content(opened.response_key(rh), rh, unit))


@pytest.mark.parametrize(
    ("count", "trailer"),
    [
        *((count, env.ANSWERED) for count in (0, 1, 2, 4)),
        (3, env.REFUSED),
        (1, env.REFUSED),
    ],
)
def test_another_number_of_answers_than_questions_is_refused(count: int, trailer: Trailer) -> None:
    call = several()
    answer = forged(call, [b"x"] * count, trailer)
    with pytest.raises(EnvelopeError) as caught:
        call.open(answer.header, answer.ciphertext)
    assert str(caught.value) == str(answer_open_failed())


def test_a_refusal_counts_for_all_of_them() -> None:
    call = several()
    answer = forged(call, [], env.REFUSED)
    opened = call.open(answer.header, answer.ciphertext)
    assert (opened.messages, opened.message, opened.trailer) == ([], None, env.REFUSED)


@pytest.mark.parametrize("count", [0, 33])
def test_a_trailer_says_how_many_may_be_asked_within_bounds(count: int) -> None:
    for detail in ("", "x"):
        with pytest.raises(ValueError, match="questions"):
            env.ANSWERED._replace(questions=count, detail=detail).encode()
    made = cbor.decode(env.ANSWERED.encode())
    with pytest.raises(EnvelopeError):
        Trailer.parse(cbor.encode({**made, "questions": count}))


def test_no_room_for_an_empty_question() -> None:
    with pytest.raises(EnvelopeError) as caught:
        env.hpke_session().seal(model="m", version=1, digest=None, message=b"x", others=[[b""]])
    assert caught.value.code is Code.INVALID_ARGUMENT
