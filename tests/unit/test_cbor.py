"""What the vectors of cbor.json do not say: what an encoder refuses, and the bound on maps."""

from __future__ import annotations

import pytest

from casemate import cbor, limits


@pytest.mark.parametrize("value", [-1, 1.0, 1 << 64, {1, 2}, object(), bytearray(b"x"), [1.0]])
def test_foreign_values_are_not_encoded(value: object) -> None:
    with pytest.raises(TypeError):
        cbor.encode(value)


def test_the_largest_integer() -> None:
    assert cbor.decode(cbor.encode((1 << 64) - 1)) == (1 << 64) - 1


@pytest.mark.parametrize("value", [0, 23, 24, 1 << 16, (1 << 64) - 1])
def test_an_integer_within_other_bytes(value: int) -> None:
    encoded = cbor.encode(value)
    assert cbor.read_uint(b"\xff" + encoded + b"\xff", 1) == (value, 1 + len(encoded))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00", "truncated"),
        (b"\x00\x18", "truncated"),
        (b"\x00\x20", "not an unsigned integer"),
        (b"\x00\x18\x17", "head is not the shortest"),
    ],
)
def test_no_integer_within_other_bytes(data: bytes, message: str) -> None:
    with pytest.raises(cbor.CborError, match=message):
        cbor.read_uint(data, 1)


@pytest.mark.parametrize(("extra", "accepted"), [(0, True), (1, False)])
def test_an_indefinite_map_is_bounded_too(extra: int, accepted: bool) -> None:
    items = b"".join(cbor.encode(key) + b"\x00" for key in range(limits.CBOR_ITEMS + extra))
    data = b"\xbf" + items + b"\xff"
    if accepted:
        assert len(cbor.decode_nsm(data)) == limits.CBOR_ITEMS
    else:
        with pytest.raises(cbor.CborError, match="too many items"):
            cbor.decode_nsm(data)


def test_an_indefinite_map_without_its_end() -> None:
    for data in (b"\xbf", b"\xbf\x00\x00", b"\xbf\x00"):
        with pytest.raises(cbor.CborError, match="truncated"):
            cbor.decode_nsm(data)
