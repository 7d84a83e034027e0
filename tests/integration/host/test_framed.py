"""Framed connections: offered, greeted, let in, and each of both kinds answered (SPEC 9.6.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casemate import limits
from tests.support.framed import RawFramed, offer_of
from tests.support.host_bench import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.host_bench import Bench
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration
FRAMES = 'frames = "127.0.0.1:0"'


@pytest.fixture
def framed(short_path: Path, chain: Chain, enclave: FakeEnclave) -> Iterator[Bench]:
    with serving(short_path, chain, FRAMES) as made:
        yield made


def connect(bench: Bench, authorization: str | None = "") -> RawFramed:
    address = bench.host.frames_address
    assert address is not None
    return RawFramed(address, authorization)


def test_the_offer_comes_with_evidence_and_the_host_says_it_first(framed: Bench) -> None:
    offer = offer_of(framed)
    assert offer is not None
    assert framed.host.frames_address == f"127.0.0.1:{offer.port}"
    with connect(framed) as connection:
        assert connection.greeting == offer.greeting


def test_a_host_that_takes_no_frames_offers_none(bench: Bench) -> None:
    assert bench.host.frames_address is None
    assert offer_of(bench) is None


@pytest.mark.parametrize("size", [1, 60_000, 600_000, limits.REQUEST_MAX])
def test_requests_of_any_size_are_exchanged_one_after_the_other(framed: Bench, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with connect(framed) as connection:
        for _ in range(2):
            assert connection.exchange(payload) == payload
        assert connection.exchange(b"refuse:OPEN_FAILED x") == "OPEN_FAILED"
        assert connection.exchange(b"and on") == b"and on"


def test_many_requests_share_a_stream(framed: Bench, enclave: FakeEnclave) -> None:
    with connect(framed) as connection:
        connection.ask(b"sleep:100 slow", b"quick", b"refuse:OPEN_FAILED x", first=7)
        assert dict(connection.take_many(2)) == {8: b"quick", 9: "OPEN_FAILED"}
        enclave.released.set()
        assert connection.take_many(1) == [(7, b"sleep:100 slow")]
