"""Streams of units, from both sides (SPEC 5.9)."""

from __future__ import annotations

import copy
import secrets
import tracemalloc
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casemate import limits
from casemate.envelope.chunks import BrokenSealError, Flag
from casemate.envelope.failure import answer_open_failed, open_failed
from casemate.envelope.padding import padded_answer, padded_length
from casemate.envelope.stream_units import UnitReader, UnitWriter, framed
from casemate.errors import Code, EnvelopeError
from tests.support import envelope as env
from tests.support.streams import Ends, answered, asked, open_stream, seal_stream, trailer

if TYPE_CHECKING:
    from casemate.envelope.messages import Trailer
    from casemate.envelope.streaming import AnswerUnit

KEY, AAD = bytes(range(32)), b"aad"
LONG = secrets.token_bytes(2 * limits.CHUNK + 777)
EDGES = [1, limits.CHUNK - 5, limits.CHUNK - 4, limits.CHUNK - 3, limits.CHUNK, 2 * limits.CHUNK]


@pytest.fixture
def ends() -> Ends:
    return Ends.of(env.hpke_session())


def test_questions_and_answers(ends: Ends) -> None:
    messages = [b"one", LONG, b"three"]
    read = [asked(ends.opened, ends.call.question([message])) for message in messages]
    assert read == [[message] for message in messages]
    assert asked(ends.opened, ends.call.end()) == []
    assert ends.opened.ended
    for unit in (2, 0, 1):  # in any order
        (got,) = answered(ends.call, ends.answer.unit([[messages[unit]]], trailer(unit), 0))
        assert (bytes(got.message or b""), got.trailer.unit) == (messages[unit], unit)
    (last,) = answered(ends.call, ends.answer.end(trailer(3), 0))
    assert (last.message, last.last, ends.call.ended) == (None, True, True)


def test_the_preamble_comes_first_and_alone() -> None:
    call = seal_stream(env.hpke_session())
    (first,) = call.opening()
    assert first[0] == Flag.UNIT_ENDS
    assert b"wdbc" in bytes(open_stream(call.header).open(memoryview(first)))
    (message,) = call.question([b"message"])
    with pytest.raises(EnvelopeError):  # the second chunk is not the first
        open_stream(call.header).open(memoryview(message))


def test_a_stream_begins_with_a_whole_preamble() -> None:
    for early in ("end", "long"):
        call = seal_stream(env.hpke_session())
        first, *_ = call.end() if early == "end" else call.question([LONG])
        with pytest.raises(EnvelopeError):
            open_stream(call.header).open(memoryview(first))


@pytest.mark.parametrize("length", EDGES)
def test_messages_of_any_length_in_any_pieces(ends: Ends, length: int) -> None:
    message = secrets.token_bytes(length)
    for cuts in (
        [message],
        [message[:1], message[1:]],
        [message[i : i + 400_000] for i in range(0, length, 400_000)],
    ):
        chunks = [bytes(chunk) for chunk in ends.call.question(cuts)]
        assert sum(len(chunk) - 17 for chunk in chunks) == padded_length(4 + length)
        assert all(len(chunk) == limits.CHUNK + 17 for chunk in chunks[:-1])
        assert [chunk[0] for chunk in chunks] == [0] * (len(chunks) - 1) + [1]
        assert asked(ends.opened, chunks) == [message]


@pytest.mark.parametrize("floor", [0, 5000, limits.CHUNK + 1, 3 * limits.CHUNK])
def test_answers_fill_the_models_bucket(ends: Ends, floor: int) -> None:
    for number, message in enumerate(([], [b"x"], [b"x" * 300, b"y"])):
        said = trailer(number) if message else trailer(number, status=Code.MODEL_FAILED)
        messages = [message] if message else []
        chunks = [bytes(chunk) for chunk in ends.answer.unit(messages, said, floor)]
        length = padded_answer(sum(map(len, message)) + 4 * bool(message), floor)
        assert sum(len(chunk) - 17 for chunk in chunks) == length
        (unit,) = answered(ends.call, chunks)
        assert bytes(unit.message or b"") == b"".join(message)
        assert unit.trailer == said


def test_a_message_goes_with_ok_and_only_with_it(ends: Ends) -> None:
    for messages, said in (([], trailer()), ([[b"leak"]], trailer(status=Code.MODEL_FAILED))):
        with pytest.raises(ValueError, match="status OK"):
            ends.answer.unit(messages, said, 0)


def test_an_answer_without_its_message_is_refused(ends: Ends) -> None:
    encoded = trailer().encode()
    pieces = framed((encoded,), len(encoded))
    chunks = ends.answer._writer.seal(pieces, padded_answer(0), Flag.UNIT_ENDS)
    with pytest.raises(EnvelopeError):
        answered(ends.call, chunks)


@pytest.mark.parametrize("receipt", [True, False])
def test_a_receipt_comes_if_it_was_asked_for_and_only_then(receipt: bool) -> None:
    ends = Ends.of(env.hpke_session(), receipt=receipt)
    with pytest.raises(EnvelopeError) if receipt else nullcontext():
        answered(ends.call, ends.answer.unit([[b"an answer"]], trailer(), 0))


def test_memory_is_asked_for_before_it_is_taken() -> None:
    call = seal_stream(env.hpke_session())
    taken: list[int] = []
    opened = open_stream(call.header, take=taken.append)
    (first,) = call.opening()
    opened.open(memoryview(first))
    long = [*call.question([LONG])]
    assert asked(opened, [*long, *call.question([b"short"])]) == [LONG, b"short"]
    assert taken == [1024, len(LONG), 1024]


def test_nothing_is_read_when_memory_is_refused() -> None:
    def refuse(size: int) -> None:
        if size > limits.CHUNK:
            raise MemoryError(size)

    call = seal_stream(env.hpke_session())
    opened = open_stream(call.header, take=refuse)
    opened.open(memoryview(*call.opening()))
    chunks = [*call.question([LONG])]
    with pytest.raises(MemoryError):
        opened.questions(memoryview(chunks[0]))
    with pytest.raises(EnvelopeError):  # and the stream is over
        opened.questions(memoryview(chunks[1]))


@pytest.mark.parametrize("lead", [0, 1, 7, 1000])
def test_what_leads_a_long_message_lies_aligned(lead: int) -> None:
    call = seal_stream(env.hpke_session())
    opened = open_stream(call.header, lead=lambda _head: lead)
    opened.open(memoryview(*call.opening()))
    chunks = [*call.question([LONG])]
    *_, (message,) = [opened.questions(memoryview(chunk)) for chunk in chunks]
    assert bytes(message) == LONG
    address = np.frombuffer(message[lead:], np.uint8).ctypes.data
    assert address % 16 == 0


# What breaks a stream


def refused_question(ends: Ends, chunk: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        ends.opened.questions(memoryview(chunk))
    assert str(caught.value) == str(open_failed())


def refused_answer(ends: Ends, chunk: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        ends.call.answer(memoryview(chunk))
    assert str(caught.value) == str(answer_open_failed())


def test_after_a_failure_nothing_opens(ends: Ends) -> None:
    (good,) = ends.call.question([b"message"])
    refused_question(ends, bytes(good[:-1]) + bytes([good[-1] ^ 1]))
    refused_question(ends, bytes(good))


def test_after_the_end_nothing_opens(ends: Ends) -> None:
    asked(ends.opened, ends.call.end())
    refused_question(ends, bytes(*ends.call.question([b"more"])))
    answered(ends.call, ends.answer.end(trailer(), 0))
    refused_answer(ends, bytes(*ends.answer.unit([[b"more"]], trailer(), 0)))


def test_the_answer_begins_once_and_with_its_header(ends: Ends) -> None:
    other = ends.opened.answer(env.INSTANCE_DIGEST)
    for header in (ends.answer.header, other.header, b"", ends.answer.header[:-1]):
        with pytest.raises(EnvelopeError):
            ends.call.begin_answer(header)
    call = seal_stream(env.hpke_session())
    with pytest.raises(EnvelopeError):
        call.answer(memoryview(*ends.answer.unit([[b"x"]], trailer(), 0)))


def forged(ends: Ends, pieces: tuple[bytes, ...], length: int, flag: Flag) -> list[bytes]:
    """What the holder of the data key could seal against the rules."""
    return [bytes(chunk) for chunk in ends.call._writer.seal(pieces, length, flag)]


def lp(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


@pytest.mark.parametrize(
    ("pieces", "length", "flag"),
    [
        pytest.param((), 1024, Flag.UNIT_ENDS, id="no part, and not the end"),
        pytest.param((lp(b"message"),), 1024, Flag.LAST, id="the end with a part"),
        pytest.param((lp(b"m"),) * 33, 1024, Flag.UNIT_ENDS, id="33 parts"),
        pytest.param((lp(LONG), lp(b"b")), 2_162_688, Flag.UNIT_ENDS, id="long: two parts"),
        pytest.param((lp(b"message"),), 1088, Flag.UNIT_ENDS, id="the next bucket"),
        pytest.param((lp(b"message"), b"\0\0\0\0\1"), 1024, Flag.UNIT_ENDS, id="not zeros"),
        pytest.param((), 2048, Flag.LAST, id="a longer end"),
        pytest.param((b"\0\0\xff\xff",), 1024, Flag.UNIT_ENDS, id="passes the end"),
        pytest.param((lp(LONG), b"\1"), 2_162_688, Flag.UNIT_ENDS, id="long: not zeros"),
        pytest.param((lp(LONG),), 3 << 20, Flag.UNIT_ENDS, id="long: another bucket"),
        pytest.param((lp(LONG)[:-999],), 2 << 20, Flag.UNIT_ENDS, id="long: cut"),
        pytest.param((bytes(4),), 2 << 20, Flag.UNIT_ENDS, id="long: without a part"),
        pytest.param((lp(LONG),), 2_162_688, Flag.LAST, id="long: the end with a part"),
    ],
)
def test_a_question_that_breaks_the_rules_is_refused(
    ends: Ends, pieces: tuple[bytes, ...], length: int, flag: Flag
) -> None:
    chunks = forged(ends, pieces, length, flag)
    with pytest.raises(EnvelopeError) as caught:
        asked(ends.opened, chunks)
    assert str(caught.value) == str(open_failed())


SAID = lp(trailer().encode())


@pytest.mark.parametrize(
    ("pieces", "length", "flag"),
    [
        pytest.param((), 2048, Flag.UNIT_ENDS, id="no part"),
        pytest.param((lp(b"m"), SAID, lp(b"x")), 2048, Flag.UNIT_ENDS, id="three parts"),
        pytest.param((lp(b"m"), SAID), 1024, Flag.UNIT_ENDS, id="no room"),
        pytest.param((lp(b"m"), SAID), 2047, Flag.UNIT_ENDS, id="not a bucket"),
        pytest.param((lp(b"m"), SAID), 2048, Flag.LAST, id="the end with a message"),
        pytest.param((SAID,), 2048, Flag.UNIT_ENDS, id="OK without a message"),
        pytest.param((lp(b"m"), lp(b"x")), 2048, Flag.UNIT_ENDS, id="no trailer"),
        pytest.param(
            (lp(LONG), bytes(1024), b"\1"), 2_162_688, Flag.UNIT_ENDS, id="long: not zeros"
        ),
        pytest.param((lp(LONG),), 2_162_688, Flag.UNIT_ENDS, id="long: no trailer"),
    ],
)
def test_an_answer_that_breaks_the_rules_is_refused(
    ends: Ends, pieces: tuple[bytes, ...], length: int, flag: Flag
) -> None:
    chunks = [bytes(chunk) for chunk in ends.answer._writer.seal(pieces, length, flag)]
    with pytest.raises(EnvelopeError) as caught:
        answered(ends.call, chunks)
    assert str(caught.value) == str(answer_open_failed())


def reader() -> UnitReader:
    return UnitReader(
        KEY, AAD, most_parts=1, rest_max=lambda: 0, take=lambda _: None, lead=lambda _: 0
    )


@pytest.mark.parametrize(
    "chunk", [b"", b"\1", b"\1" + bytes(16), b"\3" + bytes(1040), b"\xff" * 99]
)
def test_chunks_that_are_none(chunk: bytes) -> None:
    with pytest.raises(BrokenSealError):
        reader().read(memoryview(chunk))


def test_chunks_within_a_unit_are_full() -> None:
    cipher = UnitWriter(KEY, AAD)
    short = cipher._chunk(lp(LONG)[: limits.CHUNK - 1], Flag.MORE)
    with pytest.raises(BrokenSealError):
        reader().read(memoryview(short))


@pytest.mark.parametrize("pieces", [(lp(LONG)[:-999],), (bytes(4),)], ids=["cut", "no part"])
def test_a_reader_gives_no_unit_that_is_not_whole(pieces: tuple[bytes, ...]) -> None:
    opener = reader()
    first, last = UnitWriter(KEY, AAD).seal(pieces, 2 << 20)

    def read() -> None:
        opener.read(memoryview(first))
        opener.read(memoryview(last))

    with pytest.raises(BrokenSealError):
        read()


def test_chunks_above_the_bound_are_refused_unopened() -> None:
    chunk = UnitWriter(KEY, AAD)._chunk(bytes(limits.CHUNK + 1), Flag.UNIT_ENDS)
    with pytest.raises(BrokenSealError):
        reader().read(memoryview(chunk))


@pytest.mark.parametrize("flag", [Flag.UNIT_ENDS, Flag.LAST])
def test_a_flag_is_part_of_the_nonce(flag: Flag) -> None:
    (chunk,) = UnitWriter(KEY, AAD).seal((lp(b"message"),), 1024, flag)
    for other in set(range(256)) - {flag}:
        with pytest.raises(BrokenSealError):
            reader().read(memoryview(bytes([other]) + bytes(chunk[1:])))


def test_streams_of_one_session_have_their_own_headers_and_keys() -> None:
    session = env.hpke_session()
    first, second = seal_stream(session), seal_stream(session)
    assert first.header != second.header
    assert bytes(*first.opening()) != bytes(*second.opening())
    opened = open_stream(first.header)
    headers = {opened.answer(env.INSTANCE_DIGEST).header for _ in range(3)}
    assert len(headers) == 3


def test_messages_that_no_unit_can_carry(monkeypatch: pytest.MonkeyPatch, ends: Ends) -> None:
    monkeypatch.setattr(limits, "STREAM_PART_MAX", 10)
    for message, code in (([], Code.INVALID_ARGUMENT), ([b"x" * 6, b"y" * 5], Code.TOO_LARGE)):
        with pytest.raises(EnvelopeError) as caught:
            ends.call.question(message)
        assert caught.value.code == code


def test_keys_stay_where_they_are(ends: Ends) -> None:
    for thing in (ends.call, ends.opened, ends.answer, ends.call._writer, ends.opened._reader):
        assert "redacted" in repr(thing)
        with pytest.raises(TypeError):
            copy.copy(thing)


def test_a_long_unit_is_never_held_twice() -> None:
    message = bytes(32 << 20)
    writer, opener = UnitWriter(KEY, AAD), reader()
    pieces = framed((message,), len(message))
    tracemalloc.start()
    try:
        units = [
            opener.read(memoryview(chunk))
            for chunk in writer.seal(pieces, padded_length(4 + len(message)))
        ]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert units[-1] is not None
    assert peak < len(message) + 6 * limits.CHUNK


# Several messages in one unit


FEW = [b"one", b"second", b"3"]


def asked_together(ends: Ends, messages: list[bytes]) -> None:
    assert asked(ends.opened, ends.call.question(*[[one] for one in messages])) == messages


def answers_to(ends: Ends, count: int, said: Trailer) -> list[AnswerUnit]:
    parts = [[b"\0", b"part %d" % at] for at in range(count)]
    return answered(ends.call, ends.answer.unit(parts, said, 0))


def test_several_messages_are_asked_and_answered_in_one_unit(ends: Ends) -> None:
    asked_together(ends, [b"alone"])
    asked_together(ends, FEW)
    asked_together(ends, [b"x"] * 32)
    asked_together(ends, [b"last"])
    for unit, count in ((1, 3), (36, 1), (0, 1), (4, 32)):  # in any order
        (got,) = answers_to(ends, count, trailer(unit))
        assert [*map(bytes, got.messages)] == [b"\0part %d" % at for at in range(count)]
        assert got.trailer.unit == unit
    (last,) = answered(ends.call, ends.answer.end(trailer(37), 0))
    assert last.last


def test_a_refusal_counts_for_all_messages_of_a_unit(ends: Ends) -> None:
    asked_together(ends, FEW)
    said = trailer(0, status=Code.MODEL_FAILED)
    (got,) = answered(ends.call, ends.answer.unit([], said, 3 * 5000))
    assert (got.messages, got.message, got.trailer) == ([], None, said)


def test_answers_to_several_have_the_bucket_of_all(ends: Ends) -> None:
    asked_together(ends, FEW)
    asked_together(ends, FEW)
    lengths = {
        sum(len(chunk) - 17 for chunk in chunks)
        for chunks in (
            [*ends.answer.unit([[b"\0answer"]] * 3, trailer(0), 3 * 5000)],
            [*ends.answer.unit([], trailer(3, status=Code.OVERLOADED), 3 * 5000)],
        )
    }
    assert lengths == {padded_answer(0, 15_000)}


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_another_number_of_parts_than_messages_is_refused(ends: Ends, count: int) -> None:
    asked_together(ends, FEW)
    pieces = [lp(b"\0x")] * count + [SAID]
    chunks = ends.answer._writer.seal(pieces, 2048, Flag.UNIT_ENDS)
    refused_answer(ends, bytes(*chunks))


def test_parts_beside_a_refusal_are_refused(ends: Ends) -> None:
    asked_together(ends, FEW)
    pieces = [lp(b"\0x")] * 3 + [lp(trailer(0, status=Code.OVERLOADED).encode())]
    refused_answer(ends, bytes(*ends.answer._writer.seal(pieces, 2048, Flag.UNIT_ENDS)))


def test_several_have_no_more_than_one_answer_together(ends: Ends) -> None:
    asked_together(ends, FEW)
    with pytest.raises(EnvelopeError):
        answers_to(ends, 3, trailer(0, final=False))


def test_an_answer_to_one_of_several_is_not_theirs(ends: Ends) -> None:
    """Three parts are due under the first one's number alone."""
    asked_together(ends, [b"alone"])
    asked_together(ends, FEW)
    for unit in (0, 2, 3, 4):
        with pytest.raises(EnvelopeError):
            answers_to(ends, 3, trailer(unit))
        ends.call._reader = None  # a failure is the end: begin the answer once more
        ends.answer = ends.opened.answer(env.INSTANCE_DIGEST)
        ends.call.begin_answer(ends.answer.header)
    assert len(answers_to(ends, 3, trailer(1))) == 1


def test_several_are_one_chunk_and_not_too_many(ends: Ends) -> None:
    for messages in ([[b"x"]] * 33, [[b"x"], [bytes(limits.CHUNK - 8)]]):
        with pytest.raises(EnvelopeError) as caught:
            ends.call.question(*messages)
        assert caught.value.code is Code.TOO_LARGE
    with pytest.raises(EnvelopeError) as caught:
        ends.call.question([b"x"], [])
    assert caught.value.code is Code.INVALID_ARGUMENT
    whole = [b"x", bytes(limits.CHUNK - 9)]
    asked_together(ends, whole)  # and nothing was counted that was not asked
    assert len(answers_to(ends, 2, trailer(0))) == 1


def test_answers_to_several_may_be_long(ends: Ends) -> None:
    asked_together(ends, FEW)
    parts = [b"\0" + LONG, b"\1short", b"\0" + LONG[::-1]]
    chunks = [bytes(chunk) for chunk in ends.answer.unit([[part] for part in parts], trailer(), 0)]
    assert len(chunks) == 5
    (got,) = answered(ends.call, chunks)
    assert [*map(bytes, got.messages)] == parts


def test_a_preamble_has_no_second_part() -> None:
    call = seal_stream(env.hpke_session())
    preamble = lp(call._preamble)
    (first,) = call._writer.seal((preamble, lp(b"message")), 1024)
    with pytest.raises(EnvelopeError) as caught:
        open_stream(call.header).open(memoryview(first))
    assert str(caught.value) == str(open_failed())
