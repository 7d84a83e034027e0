"""Any change to a sealed request or answer is refused; unchanged, it opens to what went in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import limits
from casemate.envelope import units
from casemate.envelope.chunks import BrokenSealError, open_content, seal_content
from casemate.envelope.failure import answer_open_failed, open_failed
from casemate.envelope.header import parse_request_header
from casemate.envelope.padding import padded_length, padme
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.errors import Code, EnvelopeError
from tests.support import envelope as env

if TYPE_CHECKING:
    from casemate.envelope.sealing import SealedCall

modes = st.sampled_from(sorted(env.SESSIONS))
MESSAGES = st.binary(min_size=1, max_size=5000)

# What opening a damaged request may say: the layout is read before the seal.
BEFORE_THE_SEAL = {Code.MALFORMED, Code.UNSUPPORTED_VERSION}


@dataclass(frozen=True)
class Exchange:
    """A request of each mode and its answer, sealed once: examples only damage them."""

    call: SealedCall
    answer: env.Answer


EXCHANGES = {mode: Exchange(*env.round_trip(start())) for mode, start in env.SESSIONS.items()}
TWINS = {mode: Exchange(*env.round_trip(start())) for mode, start in env.SESSIONS.items()}


def flip(data: bytes, bit: int) -> bytes:
    at, mask = (bit // 8) % len(data), 1 << bit % 8
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def refused_request(header: bytes, ciphertext: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        env.open_sealed(header, ciphertext)
    if caught.value.code not in BEFORE_THE_SEAL:
        assert str(caught.value) == str(open_failed())


def refused_answer(call: SealedCall, header: bytes, ciphertext: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        call.open(header, ciphertext)
    assert str(caught.value) == str(answer_open_failed())


@given(modes, MESSAGES, MESSAGES, st.integers(0, 20_000))
def test_what_is_sealed_opens_to_the_same(
    mode: str, question: bytes, reply: bytes, floor: int
) -> None:
    call = env.seal(env.SESSIONS[mode](), question)
    opened = env.open_sealed(*parse_sealed(b"".join(encode_sealed(call.header, call.ciphertext))))
    assert bytes(opened.message) == question
    answer = env.answer(opened, reply, floor=floor)
    received = call.open(answer.header, answer.ciphertext)
    assert bytes(received.message or b"") == reply


@given(modes, st.integers(0, 1 << 20), st.booleans())
def test_any_flipped_bit_is_refused(mode: str, bit: int, in_header: bool) -> None:
    call, answer = EXCHANGES[mode].call, EXCHANGES[mode].answer
    if in_header:
        refused_request(flip(call.header, bit), bytes(call.ciphertext))
        refused_answer(call, flip(answer.header, bit), bytes(answer.ciphertext))
    else:
        refused_request(call.header, flip(bytes(call.ciphertext), bit))
        refused_answer(call, answer.header, flip(bytes(answer.ciphertext), bit))


@pytest.mark.parametrize("mode", sorted(env.SESSIONS))
def test_every_byte_of_a_header_counts(mode: str) -> None:
    call, answer = EXCHANGES[mode].call, EXCHANGES[mode].answer
    for at in range(len(call.header)):
        refused_request(flip(call.header, 8 * at + at % 8), bytes(call.ciphertext))
    for at in range(len(answer.header)):
        refused_answer(call, flip(answer.header, 8 * at + at % 8), bytes(answer.ciphertext))


@given(modes, st.integers(0, 5000))
def test_any_truncation_is_refused(mode: str, length: int) -> None:
    call, answer = EXCHANGES[mode].call, EXCHANGES[mode].answer
    refused_request(call.header, bytes(call.ciphertext[: length % len(call.ciphertext)]))
    refused_request(call.header[: length % len(call.header)], bytes(call.ciphertext))
    refused_answer(call, answer.header, bytes(answer.ciphertext[: length % len(answer.ciphertext)]))
    refused_answer(call, answer.header[: length % len(answer.header)], bytes(answer.ciphertext))


@given(modes, st.binary(min_size=1, max_size=40))
def test_any_extension_is_refused(mode: str, more: bytes) -> None:
    call, answer = EXCHANGES[mode].call, EXCHANGES[mode].answer
    refused_request(call.header, bytes(call.ciphertext) + more)
    refused_request(call.header + more, bytes(call.ciphertext))
    refused_answer(call, answer.header, bytes(answer.ciphertext) + more)


# Fields of the request header by SPEC 5.1, for splices between two sessions.
FIELDS = [0, 1, 2, 18, 22, 30, 38, 70, 86, 118, 122]


@given(modes, st.sets(st.integers(0, len(FIELDS) - 1), min_size=1))
def test_a_splice_of_two_sessions_is_refused(mode: str, taken: set[int]) -> None:
    ours = EXCHANGES[mode].call
    theirs = TWINS[mode].call
    ends = [*FIELDS[1:], len(ours.header)]
    header = bytearray(ours.header)
    for index in taken:
        header[FIELDS[index] : ends[index]] = theirs.header[FIELDS[index] : ends[index]]
    if bytes(header) != ours.header:
        refused_request(bytes(header), bytes(ours.ciphertext))
    if bytes(header) != theirs.header:
        refused_request(bytes(header), bytes(theirs.ciphertext))


@given(modes)
def test_answers_of_concurrent_calls_cannot_be_swapped(mode: str) -> None:
    session = env.SESSIONS[mode]()
    calls = [env.seal(session) for _ in range(2)]
    answers = [env.answer(env.open_sealed(call.header, call.ciphertext)) for call in calls]
    refused_answer(calls[0], answers[1].header, bytes(answers[1].ciphertext))
    refused_answer(calls[1], answers[0].header, bytes(answers[0].ciphertext))
    refused_answer(calls[0], answers[0].header, bytes(answers[1].ciphertext))
    refused_answer(calls[0], answers[1].header, bytes(answers[0].ciphertext))
    refused_answer(calls[0], answers[0].header, bytes(calls[0].ciphertext))


# Small stand-ins for chunks would need another constant in the code under test: three real ones.
CONTENT = bytes(2 * limits.CHUNK) + b"the end of the last chunk"
KEY, AAD = bytes(range(32)), b"aad"
SEALED = bytes(seal_content(KEY, AAD, CONTENT))
CHUNKS = [SEALED[at : at + limits.CHUNK + 16] for at in range(0, len(SEALED), limits.CHUNK + 16)]


def test_three_chunks_in_order_open() -> None:
    assert bytes(open_content(KEY, AAD, b"".join(CHUNKS))) == CONTENT


@given(st.lists(st.integers(0, 2), max_size=4).filter(lambda order: order != [0, 1, 2]))
def test_chunks_in_any_other_order_number_or_end_are_refused(order: list[int]) -> None:
    with pytest.raises(BrokenSealError):
        open_content(KEY, AAD, b"".join(CHUNKS[index] for index in order))


@given(st.integers(2, limits.REQUEST_MAX))
def test_buckets(length: int) -> None:
    padded = padme(length)
    assert length <= padded <= limits.REQUEST_MAX
    assert padme(padded) == padded
    assert padded <= length * 1.12 or padded <= 1024


PARTS = st.binary(min_size=1, max_size=3000)


@given(PARTS, st.lists(PARTS, min_size=1, max_size=32))
def test_requests_are_split_as_packed(preamble: bytes, messages: list[bytes]) -> None:
    parts = [preamble, *messages]
    unit = units.pack_unit(parts)
    assert len(unit) == padded_length(sum(4 + len(part) for part in parts))
    assert [*map(bytes, units.split_request(memoryview(unit)))] == parts


@given(st.none() | PARTS, st.binary(min_size=1, max_size=1020), st.integers(0, 9999))
def test_answers_are_split_as_packed(message: bytes | None, trailer: bytes, floor: int) -> None:
    """Nothing but the bucket and the message's own length decides an answer's length."""
    unit = units.pack_response(message, trailer, floor)
    framed = 0 if message is None else 4 + len(message)
    assert len(unit) == padme(max(floor, framed) + 1024)
    found, tail = units.split_response(memoryview(unit))
    assert ([*map(bytes, found)], bytes(tail)) == ([] if message is None else [message], trailer)


@given(st.binary(max_size=1200), st.integers(0, 2))
def test_a_unit_has_one_reading(start: bytes, extra: int) -> None:
    """Whatever a request's reader accepts is exactly what a writer makes of the parts."""
    unit = start.ljust((1024, 1088, 1152)[extra], b"\0")
    try:
        parts = units.split_request(memoryview(unit))
    except BrokenSealError:
        return
    assert units.pack_unit([bytes(part) for part in parts]) == unit


@given(st.binary(max_size=300))
def test_a_sealed_message_has_one_encoding(data: bytes) -> None:
    try:
        header, ciphertext = parse_sealed(data)
    except EnvelopeError as error:
        assert error.code == Code.MALFORMED  # noqa: PT017 - most examples are refused
        return
    assert b"".join(encode_sealed(header, ciphertext)) == data


@given(st.binary(max_size=1400))
def test_a_request_header_has_one_encoding(data: bytes) -> None:
    for candidate in (data, b"\x01\x01" + data, EXCHANGES["kms"].call.header[:70] + data):
        try:
            parsed = parse_request_header(candidate)
        except EnvelopeError as error:
            assert error.code in BEFORE_THE_SEAL  # noqa: PT017 - most examples are refused
            continue
        assert parsed.encode() == candidate
