from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from casemate import cbor, limits
from casemate.envelope.messages import SEALED_STATUSES, Preamble, Trailer
from casemate.errors import Code, EnvelopeError

FULL = Preamble("wdbc", 7, b"d" * 48, b"c" * 32, b"s" * 64, b"o" * 48, receipt=True)
TRAILER = Trailer(Code.OK, "", "wdbc", 7, b"d" * 48)
RECEIPTED = TRAILER._replace(receipt=b"r", question_blinder=b"q" * 32, answer_blinder=b"a" * 32)


def test_what_is_encoded_is_parsed() -> None:
    for preamble in (FULL, Preamble("m"), Preamble("m", operation="metadata")):
        assert Preamble.parse(preamble.encode()) == preamble
    for status in SEALED_STATUSES:
        trailer = TRAILER._replace(status=status)
        assert Trailer.parse(trailer.encode()) == trailer
    assert Trailer.parse(RECEIPTED.encode()) == RECEIPTED
    assert Trailer.parse(Trailer(Code.INVALID_REQUEST).encode()).model is None


BAD_PREAMBLES: list[dict[str, Any]] = [
    {"model": ""},
    {"model": "x" * 256},
    {"model": "\u00fc" * 128},
    {"version": 0},
    {"version": 1 << 32},
    {"digest": b"d" * 47},
    {"digest": b""},
    {"caller": None},
    {"signature": None},
    {"caller": b"c" * 31},
    {"signature": b"s" * 65},
    {"sealed_data": b"o" * 47},
    {"sealed_data": b""},
    {"operation": "metadata"},  # and an object
    {"operation": "train"},
    {"operation": ""},
]


@pytest.mark.parametrize("change", BAD_PREAMBLES)
def test_a_preamble_out_of_bounds_is_neither_written_nor_read(change: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeError) as caught:
        replace(FULL, **change).encode()
    assert caught.value.code == Code.INVALID_ARGUMENT
    names = {"sealed_data": "object"}  # as the SPEC spells it
    fields = cbor.decode(FULL.encode()) | {names.get(k, k): v for k, v in change.items()}
    with pytest.raises(EnvelopeError) as caught:
        Preamble.parse(cbor.encode(fields))
    assert caught.value.code == Code.INVALID_REQUEST


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xa0",
        cbor.encode(cbor.decode(FULL.encode()) | {"v": 2}),
        cbor.encode(cbor.decode(FULL.encode()) | {"model": 1}),
        cbor.encode(cbor.decode(FULL.encode()) | {"version": True}),
        cbor.encode(cbor.decode(FULL.encode()) | {"more": 1}),
        cbor.encode(cbor.decode(FULL.encode()) | {"receipt": 1}),
        cbor.encode(cbor.decode(FULL.encode()) | {"receipt": None}),
        FULL.encode() + b"\0",
        cbor.encode(cbor.decode(FULL.encode()) | {"signature": b"s" * 2000}),
    ],
)
def test_what_is_no_preamble_is_an_invalid_request(data: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        Preamble.parse(data)
    assert caught.value.code == Code.INVALID_REQUEST


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"status": "REPLAYED"},
        {"status": "ok"},
        {"status": "no such code"},
        {"detail": "x" * 513},
        {"detail": "\u00fc" * 257},
        {"detail": None},
        {"model": ""},
        {"version": 0},
        {"digest": b"d"},
        {"unit": 1 << 32},
        {"unit": None},
        {"final": 1},
        {"status": "MODEL_FAILED", "final": False},
        {"more": None},
    ],
)
def test_what_is_no_trailer_is_one_error(change: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeError) as caught:
        Trailer.parse(cbor.encode(cbor.decode(TRAILER.encode()) | change))
    assert caught.value.code == Code.ANSWER_OPEN_FAILED


@pytest.mark.parametrize("status", [Code.OK, Code.MODEL_FAILED])
def test_a_unit_above_32_bits_is_not_written(status: Code) -> None:
    with pytest.raises(ValueError, match="unit"):
        TRAILER._replace(status=status, unit=1 << 32).encode()


@pytest.mark.parametrize("unit", [0, 1, 23, 24, 255, 256, 65_535, 65_536, (1 << 32) - 1])
@pytest.mark.parametrize("trailer", [TRAILER, RECEIPTED, TRAILER._replace(final=False)])
def test_trailers_that_differ_by_their_unit_alone_are_told_apart(
    trailer: Trailer, unit: int
) -> None:
    """Those read before are known by sight, but for their unit."""
    numbered = trailer._replace(unit=unit)
    for _ in range(2):
        assert Trailer.parse(trailer.encode()) == trailer
        assert Trailer.parse(numbered.encode()) == numbered
    assert numbered.encode() == numbered._encode()


@pytest.mark.parametrize(
    "unit", [b"\x18\x07", b"\x19\x00\xff", b"\x1b" + (1 << 32).to_bytes(8, "big"), b"\x41\x07", b""]
)
def test_a_unit_is_read_strictly_however_well_the_rest_is_known(unit: bytes) -> None:
    encoded = TRAILER._replace(unit=7).encode()
    Trailer.parse(encoded)
    assert encoded.count(b"dunit\x07") == 1
    for spoilt in (encoded.replace(b"dunit\x07", b"dunit" + unit), encoded[:10], encoded[:9]):
        with pytest.raises(EnvelopeError) as caught:
            Trailer.parse(spoilt)
        assert caught.value.code == Code.ANSWER_OPEN_FAILED


@pytest.mark.parametrize(
    "change",
    [
        {"receipt": b""},
        {"receipt": b"r" * 513},
        {"receipt": None},
        {"receipt": None, "question_blinder": None},
        {"receipt": None, "answer_blinder": None},
        {"question_blinder": None},
        {"answer_blinder": None},
        {"question_blinder": b"q" * 31},
        {"answer_blinder": b"a" * 33},
        {"status": Code.MODEL_FAILED},
        {"final": False},
    ],
)
def test_a_receipt_comes_whole_and_with_an_answer(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        RECEIPTED._replace(**change).encode()
    with pytest.raises(EnvelopeError) as caught:
        Trailer.parse(cbor.encode(cbor.decode(RECEIPTED.encode()) | change))
    assert caught.value.code == Code.ANSWER_OPEN_FAILED


def test_the_largest_trailers_have_room() -> None:
    longest = Trailer(Code.KEY_RELEASE_UNAVAILABLE, "x" * 600, "m" * 128, (1 << 32) - 1, b"d" * 48)
    assert len(longest.encode()) <= limits.TRAILER_MAX
    whole = RECEIPTED._replace(
        receipt=b"r" * 512, model="m" * 128, version=(1 << 32) - 1, unit=(1 << 32) - 1
    )
    assert len(whole.encode()) <= limits.TRAILER_MAX


def test_a_code_from_outside_the_seal_is_never_sealed() -> None:
    with pytest.raises(ValueError, match="not a sealed status"):
        TRAILER._replace(status=Code.REPLAYED).encode()


def test_a_long_detail_is_cut_at_a_character() -> None:
    parsed = Trailer.parse(TRAILER._replace(detail="x" + "\u00fc" * 400).encode())
    assert parsed.detail == "x" + "\u00fc" * 255
