"""Streams under all that a host can do to their chunks (SPEC 5.9; THREATS H2, H4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.envelope.failure import answer_open_failed, open_failed
from casemate.envelope.sealed_chunks import encode_chunk, encode_header, parse_chunks
from casemate.errors import Code, EnvelopeError
from tests.support import envelope as env
from tests.support.streams import Recorded, open_stream, record, seal_stream

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGES = [b"a question", b"another", b"x" * 3000, b"the last"]
SESSION = env.hpke_session()
OURS = record(SESSION, MESSAGES)
TWIN = record(SESSION, MESSAGES)  # another stream of the same session
FOREIGN = record(env.kms_session(), MESSAGES)

chunk_of_a_question = st.integers(0, len(OURS.questions) - 1)
chunk_of_an_answer = st.integers(0, len(OURS.answers) - 1)


def flip(data: bytes, bit: int) -> bytes:
    at, mask = (bit // 8) % len(data), 1 << bit % 8
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def read_question(header: bytes, chunks: Sequence[bytes]) -> list[bytes]:
    """What an enclave makes of a question; raises EnvelopeError if any of it is not as sealed."""
    opened = open_stream(header)
    if not chunks:
        raise open_failed()
    opened.open(memoryview(chunks[0]))
    messages = [one for chunk in chunks[1:] for one in opened.questions(memoryview(chunk))]
    if not opened.ended:
        raise open_failed()
    return [bytes(message) for message in messages]


def read_answer(recorded: Recorded, header: bytes, chunks: Sequence[bytes]) -> list[bytes]:
    """What the client whose stream was ``recorded`` makes of an answer; raises likewise."""
    call = seal_stream(SESSION)
    call._th, call._prk = recorded.call._th, recorded.call._prk  # the same, from the beginning
    call.begin_answer(header)
    units = [call.answer(memoryview(chunk)) for chunk in chunks]
    if not call.ended:
        raise answer_open_failed()
    return [bytes(unit.message or b"") for unit in units if unit is not None and not unit.last]


def refused_question(header: bytes, chunks: Sequence[bytes]) -> None:
    with pytest.raises(EnvelopeError) as caught:
        read_question(header, chunks)
    if caught.value.code not in {Code.MALFORMED, Code.UNSUPPORTED_VERSION}:
        assert str(caught.value) == str(open_failed())


def refused_answer(header: bytes, chunks: Sequence[bytes]) -> None:
    with pytest.raises(EnvelopeError) as caught:
        read_answer(OURS, header, chunks)
    assert str(caught.value) == str(answer_open_failed())


def test_what_nobody_touched_opens() -> None:
    assert read_question(OURS.header, OURS.questions) == MESSAGES
    assert read_answer(OURS, OURS.answer_header, OURS.answers) == MESSAGES


@given(chunk_of_a_question, st.integers(0, 1 << 16))
def test_any_flipped_bit_of_a_question_is_refused(index: int, bit: int) -> None:
    chunks = [*OURS.questions]
    chunks[index] = flip(chunks[index], bit)
    refused_question(OURS.header, chunks)
    refused_question(flip(OURS.header, bit), OURS.questions)


@given(chunk_of_an_answer, st.integers(0, 1 << 16))
def test_any_flipped_bit_of_an_answer_is_refused(index: int, bit: int) -> None:
    chunks = [*OURS.answers]
    chunks[index] = flip(chunks[index], bit)
    refused_answer(OURS.answer_header, chunks)
    refused_answer(flip(OURS.answer_header, bit), OURS.answers)


@given(chunk_of_a_question, st.integers(0, 1 << 16))
def test_any_cut_is_refused(index: int, length: int) -> None:
    """Within a chunk, between chunks, and at the end of a unit."""
    cut = OURS.questions[index][: length % len(OURS.questions[index])]
    refused_question(OURS.header, [*OURS.questions[:index], cut, *OURS.questions[index + 1 :]])
    refused_question(OURS.header, OURS.questions[:index])
    index %= len(OURS.answers)
    cut = OURS.answers[index][: length % len(OURS.answers[index])]
    refused_answer(OURS.answer_header, [*OURS.answers[:index], cut, *OURS.answers[index + 1 :]])
    refused_answer(OURS.answer_header, OURS.answers[:index])


@given(chunk_of_a_question, st.binary(min_size=1, max_size=40))
def test_any_growth_is_refused(index: int, more: bytes) -> None:
    chunks = [*OURS.questions]
    chunks[index] += more
    refused_question(OURS.header, chunks)
    refused_question(OURS.header, [*OURS.questions, more])
    refused_answer(OURS.answer_header, [*OURS.answers, more])


@given(st.lists(chunk_of_a_question, max_size=8))
def test_chunks_of_a_question_in_any_other_order_or_number_are_refused(order: list[int]) -> None:
    if order != [*range(len(OURS.questions))]:
        refused_question(OURS.header, [OURS.questions[index] for index in order])


@given(st.permutations(range(len(OURS.questions))), st.permutations(range(len(OURS.answers))))
def test_chunks_in_any_other_order_are_refused(first: list[int], second: list[int]) -> None:
    if first != sorted(first):
        refused_question(OURS.header, [OURS.questions[index] for index in first])
    if second != sorted(second):
        refused_answer(OURS.answer_header, [OURS.answers[index] for index in second])


@given(chunk_of_a_question, chunk_of_a_question)
def test_dropped_and_doubled_chunks_are_refused(index: int, place: int) -> None:
    chunks = OURS.questions
    refused_question(OURS.header, chunks[:index] + chunks[index + 1 :])
    refused_question(OURS.header, [*chunks[:place], chunks[index], *chunks[place:]])
    chunks = OURS.answers
    index, place = index % len(chunks), place % len(chunks)
    refused_answer(OURS.answer_header, chunks[:index] + chunks[index + 1 :])
    refused_answer(OURS.answer_header, [*chunks[:place], chunks[index], *chunks[place:]])


@given(st.lists(st.sampled_from(["ours", "twin", "foreign"]), min_size=6, max_size=6))
def test_any_splice_of_streams_is_refused(sources: list[str]) -> None:
    """Chunk by chunk from our stream, another one of the session, and another session's."""
    streams = {"ours": OURS, "twin": TWIN, "foreign": FOREIGN}
    taken = [streams[source] for source in sources]
    questions = [stream.questions[index] for index, stream in enumerate(taken)]
    for header in (OURS.header, TWIN.header):
        own = OURS if header == OURS.header else TWIN
        if questions != own.questions:
            refused_question(header, questions)
    answers = [stream.answers[index] for index, stream in enumerate(taken[: len(OURS.answers)])]
    for header in (OURS.answer_header, TWIN.answer_header, FOREIGN.answer_header):
        if (header, answers) != (OURS.answer_header, OURS.answers):
            refused_answer(header, answers)


@given(chunk_of_a_question)
def test_a_question_sent_back_is_no_answer(index: int) -> None:
    refused_answer(OURS.answer_header, [OURS.questions[index]])
    refused_question(OURS.header, [OURS.answers[index % len(OURS.answers)]])


@given(st.lists(st.binary(min_size=1, max_size=9000), max_size=6), st.integers(0, 20_000))
def test_what_is_sealed_opens_to_the_same(messages: list[bytes], floor: int) -> None:
    recorded = record(SESSION, messages, floor)
    assert read_question(recorded.header, recorded.questions) == messages
    assert read_answer(recorded, recorded.answer_header, recorded.answers) == messages


@given(st.binary(max_size=300), st.booleans())
def test_a_message_of_a_stream_has_one_encoding(data: bytes, first: bool) -> None:
    for candidate in (data, b"\x0a\x01h" + data, b"\x12\x03abc" + data):
        try:
            header, chunks = parse_chunks(candidate, first=first)
        except EnvelopeError as error:
            assert error.code == Code.MALFORMED  # noqa: PT017 - most examples are refused
            continue
        fields = [encode_header(header)] if header else []
        fields += [encode_chunk(chunk) for chunk in chunks]  # type: ignore[misc]
        assert b"".join(b"".join(field) for field in fields) == candidate


@given(st.lists(st.binary(min_size=1, max_size=99), min_size=1, max_size=5), st.integers(0, 5))
def test_messages_are_joined_by_joining_their_bytes(chunks: list[bytes], cut: int) -> None:
    encoded = [b"".join(encode_chunk(chunk)) for chunk in chunks]
    whole = b"".join(encode_header(b"header")) + b"".join(encoded)
    header, read = parse_chunks(whole, first=True)
    assert (header, [bytes(chunk) for chunk in read]) == (b"header", chunks)
    rest = b"".join(encoded[cut:])
    if rest:
        header, read = parse_chunks(rest, first=False)
        assert (header, [bytes(chunk) for chunk in read]) == (b"", chunks[cut:])
