"""What a host says of framed connections, and what is no offer (SPEC 9.6.3)."""

from __future__ import annotations

import pytest

from casemate.framed import GREETING_BYTES, Offer

ID = "00112233445566778899aabbccddeeff"


@pytest.mark.parametrize("port", [1, 80, 8444, 65535])
def test_an_offer_is_read_as_it_was_written(port: int) -> None:
    offer = Offer.new(port)
    assert Offer.parse(offer.text) == Offer.parse(offer.text.encode()) == offer
    assert len(offer.greeting) == GREETING_BYTES
    assert offer.greeting.endswith(b"\x01" + offer.host_id)


def test_no_two_hosts_say_the_same() -> None:
    assert len({Offer.new(1).host_id for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", "8444", ID, f"0 {ID}", f"08444 {ID}", f"65536 {ID}", f"99999 {ID}"),
        *(f"100000 {ID}", f"-1 {ID}", f"+1 {ID}", f"8444  {ID}", f" 8444 {ID}", f"8444 {ID} "),
        *(f"8444 {ID}\n", f"8444 {ID}00", f"8444 {ID[:-1]}", f"8444 {ID.upper()}", f"8444,{ID}"),
        *(f"a:8444 {ID}", f"٨٤٤٤ {ID}", f"8444 {ID}, 8445 {ID}", b"\xff\xfe", f"8444\0{ID}"),
    ],
)
def test_anything_else_is_no_offer(text: str | bytes | None) -> None:
    assert Offer.parse(text) is None
