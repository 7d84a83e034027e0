"""What a client makes of offers and refusals (SPEC 9.6.3)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from casemate import framed
from casemate.client.access import HostAccess
from casemate.client.call_book import BrokenError
from casemate.client.framed import (
    WELCOME,
    FramedHost,
    hello_of,
    name_of,
    offered,
    refusal_in,
)
from casemate.errors import Code
from casemate.framed import Offer
from casemate.v1.confidential_inference_pb2 import Refusal

TOKEN = "t" * 16


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("127.0.0.1:8443", "127.0.0.1"),
        ("inference.example:8443", "inference.example"),
        ("localhost:1", "localhost"),
        ("[::1]:8443", "::1"),
        ("[fe80::1]:8443", "fe80::1"),
    ],
)
def test_a_plain_target_may_have_framed_connections(target: str, name: str) -> None:
    assert name_of(target, HostAccess()) == name
    assert name_of(target, HostAccess(token=TOKEN)) == name


@pytest.mark.parametrize(
    "target",
    [
        "unix:/run/casemate.sock",
        "unix:7",
        "dns:///inference.example:8443",
        "dns:8443",
        "ipv4:127.0.0.1:8443",
        "inference.example",
        "inference.example:https",
        "::1:8443",
        "[::1]",
        "",
        "a b:8443",
        "127.0.0.1:8443\n",
    ],
)
def test_another_target_has_none(target: str) -> None:
    assert name_of(target, HostAccess()) is None


def test_a_service_with_tls_has_none() -> None:
    assert name_of("inference.example:8443", HostAccess(tls_roots=b"roots")) is None


def test_where_sockets_cannot_send_two_buffers_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("casemate.client.framed.socket", SimpleNamespace(socket=object))
    assert name_of("inference.example:8443", HostAccess()) is None


def test_the_offer_is_found_among_the_metadata() -> None:
    offer = Offer.new(8444)
    assert offered([("x", "y"), (framed.METADATA, offer.text)]) == offer
    assert offered([(framed.METADATA, offer.text.encode())]) == offer
    assert FramedHost("::1", offer).address == ("::1", 8444)


@pytest.mark.parametrize(
    "metadata", [None, (), [("x", "y")], [(framed.METADATA, "8444")], [(framed.METADATA, b"\xff")]]
)
def test_anything_else_offers_nothing(metadata: list[tuple[str, str | bytes]] | None) -> None:
    assert offered(metadata) is None


def test_the_hello_says_who_asks() -> None:
    assert hello_of(HostAccess()) == framed.hello()
    assert hello_of(HostAccess(token=TOKEN)) == framed.hello(f"Bearer {TOKEN}")
    assert bytes.fromhex("00000005a100000000") == WELCOME


def test_a_refusal_is_read_as_that_of_a_stream() -> None:
    refusal = Refusal(reason="OVERLOADED", detail="no\x1b[2J", retry_delay=1500)
    failure = refusal_in(memoryview(refusal.SerializeToString()))
    assert (failure.code, failure.retry_after_s) == (Code.OVERLOADED, 1.5)
    assert "\x1b" not in failure.detail
    assert refusal_in(b"").code is Code.HOST_UNREACHABLE
    with pytest.raises(BrokenError):
        refusal_in(b"\xff\xff")
