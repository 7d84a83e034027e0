"""Long messages: sealed where they are sent from, opened where they were received."""

from __future__ import annotations

import os
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from casemate import limits, wire
from casemate.envelope import opening
from casemate.envelope.chunks import BrokenSealError, open_content, seal_content
from casemate.envelope.header import parse_request_header
from casemate.envelope.message_sealing import seal_message
from casemate.envelope.sealed_message import parse_sealed
from casemate.envelope.units import request_unit
from casemate.errors import Code, EnvelopeError
from tests.support import envelope as env

if TYPE_CHECKING:
    from casemate.wire import Pieces

KEY, HEADER = bytes(range(32)), b"h" * 1300
AAD = wire.digest(HEADER)
LONG = limits.SEALED_IN_PLACE_MIN
LENGTHS = (
    *(1, 1000, LONG - 400, LONG, 602_112, limits.CHUNK - 100, limits.CHUNK, limits.CHUNK + 1),
    *(2 * limits.CHUNK, 3_500_000),
)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_message_is_the_header_and_the_sealed_content(length: int) -> None:
    content = os.urandom(length)
    cut = length // 2
    pieces: Pieces = [content[:1], b"", memoryview(content)[1 : cut + 1], content[cut + 1 :]]
    unit = request_unit((b"preamble", pieces))
    plain = request_unit((b"preamble", content)).whole()

    header, ciphertext = parse_sealed(seal_message(HEADER, KEY, AAD, unit))

    assert header == HEADER
    assert ciphertext == seal_content(KEY, AAD, plain)
    assert open_content(KEY, AAD, ciphertext) == plain


@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_are_what_lies_scattered(length: int) -> None:
    unit = request_unit((b"preamble", [bytes(9), b"", os.urandom(length), b"end"]))

    assert [b"".join(pieces) for pieces in unit.scattered()] == [bytes(c) for c in unit.chunks()]
    assert b"".join(unit.chunks()) == unit.whole()


def test_a_long_message_takes_memory_once() -> None:
    content = bytes(8 * limits.MIB)
    unit = request_unit((b"preamble", content))
    tracemalloc.start()
    try:
        message = seal_message(HEADER, KEY, AAD, unit)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 1.1 * len(message)


def test_a_request_is_opened_where_it_lies() -> None:
    message = os.urandom(300_000)
    call = env.seal(env.hpke_session(), message)
    received = memoryview(bytearray(call.ciphertext))
    header = parse_request_header(call.header)
    prk = opening.check_commitment(header, env.unwrap(header))

    opened = opening.open_request(call.header, received.toreadonly(), prk, received)

    assert opened.message == message
    assert message[:1000] in received.obj  # type: ignore[operator]  # the bytearray
    with pytest.raises(TypeError):
        opened.message[0] = 0


@pytest.mark.parametrize("at", [0, 150_000, -1])
def test_what_does_not_open_in_its_place_is_refused(at: int) -> None:
    call = env.seal(env.hpke_session(), os.urandom(300_000))
    received = memoryview(bytearray(call.ciphertext))
    received[at] ^= 1
    header = parse_request_header(call.header)
    prk = opening.check_commitment(header, env.unwrap(header))

    with pytest.raises(EnvelopeError) as caught:
        opening.open_request(call.header, received, prk, received)

    assert caught.value.code is Code.OPEN_FAILED


def test_a_content_of_several_chunks_leaves_its_place_alone() -> None:
    content = os.urandom(limits.CHUNK + 1)
    sealed = bytearray(seal_content(KEY, AAD, content))
    before = bytes(sealed)

    assert open_content(KEY, AAD, sealed, memoryview(sealed)) == content

    assert sealed == before
    sealed[-1] ^= 1
    with pytest.raises(BrokenSealError):
        open_content(KEY, AAD, sealed, memoryview(sealed))
