"""The blocking client's framed connections at a real host (SPEC 9.6.3)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from casemate import limits
from casemate.errors import Code
from tests.support.attacker import eventually
from tests.support.blocking_connection import LARGE, BlockingConnection
from tests.support.host_bench import serving
from tests.support.ports import lasting_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.host_bench import Bench
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration
FRAMES = 'frames = "127.0.0.1:0"'


@pytest.fixture
def bench(short_path: Path, chain: Chain, enclave: FakeEnclave) -> Iterator[Bench]:
    with serving(short_path, chain, FRAMES) as made:
        yield made


def open_at(bench: Bench) -> int:
    """Framed connections that the host has."""
    return bench.host._front._framed.connections


def settled(connection: BlockingConnection, bench: Bench) -> None:
    """Call until small and large requests travel in frames."""
    assert eventually(
        lambda: (
            connection.call(b"small") == b"small"
            and connection.call(LARGE) == LARGE
            and open_at(bench) == 2
        )
    )


def test_requests_of_any_size_travel_in_frames(bench: Bench) -> None:
    with BlockingConnection(bench.address) as connection:
        settled(connection, bench)
        for size in (1, 1000, limits.CALL_STREAM_REQUEST_MAX, 600_000, 5_000_000):
            payload = b"x" * size
            assert connection.call(payload) == payload
        assert open_at(bench) == 2
    assert eventually(lambda: open_at(bench) == 0)


def test_a_refusal_of_the_enclave_is_an_error(bench: Bench) -> None:
    with BlockingConnection(bench.address) as connection:
        settled(connection, bench)
        refused = b"refuse:OPEN_FAILED x"
        assert connection.outcome(refused) is Code.OPEN_FAILED
        assert connection.outcome(refused.ljust(len(LARGE))) is Code.OPEN_FAILED
        assert connection.call(LARGE) == LARGE
        assert open_at(bench) == 2


def test_deadlines_are_kept(bench: Bench, enclave: FakeEnclave) -> None:
    with BlockingConnection(bench.address) as connection:
        settled(connection, bench)
        slow = b"sleep:100 "
        assert connection.outcome(slow, 0.3) is Code.DEADLINE_EXCEEDED
        assert connection.outcome(slow.ljust(len(LARGE)), 0.3) is Code.DEADLINE_EXCEEDED
        enclave.released.set()
        settled(connection, bench)


def test_many_threads_with_requests_of_all_sizes(bench: Bench) -> None:
    with BlockingConnection(bench.address) as connection:
        settled(connection, bench)
        for turn in range(5):
            requests = [b"%d %d" % (turn, n) * (1 if n % 2 else 20_000) for n in range(32)]
            assert connection.together(requests) == requests


def test_streams_that_the_host_retires_fail_no_call(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CALL_STREAM_AGE_S", 0.1)
    with BlockingConnection(bench.address) as connection, ThreadPoolExecutor(8) as pool:
        settled(connection, bench)
        streams: set[object] = set()

        def several() -> bool:
            requests = [b"%d" % n for n in range(8)]
            assert list(pool.map(connection.call, requests)) == requests
            streams.add(connection.connection._shared._stream)
            return len(streams) > 3

        assert eventually(several)


def test_a_host_that_drains_and_comes_again_is_found_by_its_new_offer(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    front = f'listen = "127.0.0.1:{lasting_port()}"\n{FRAMES}'
    with serving(short_path, chain, front) as bench:
        connection = BlockingConnection(bench.address)
        settled(connection, bench)
    with serving(short_path, chain, front) as bench:
        answers = {b"again", Code.UNAVAILABLE, Code.HOST_UNREACHABLE}
        assert eventually(lambda: connection.outcome(b"again") == b"again")
        assert connection.outcome(LARGE) in {LARGE, *answers}
        settled(connection, bench)
        connection.close()
