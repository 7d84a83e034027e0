"""What `make soak` calls a leak: a process that leaks threads slowly, and one that has a pool."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bench import soak

if TYPE_CHECKING:
    from collections.abc import Iterator

# Serves a "request" for each line; the host's own pool, with an end of idle threads that a test
# can wait for. Of every `sys.argv[1]` requests one leaves a thread behind, 0: none.
SERVER = """
import sys, threading, time
from casemate import limits
from casemate_host.workers import Workers
limits.THREAD_IDLE_S = 0.1
leak = int(sys.argv[1])
workers = Workers(16, "call")
for number, line in enumerate(sys.stdin, 1):
    futures = [workers.submit(time.sleep, 0.002) for _ in range(1 + number % 8)]
    for future in futures:
        future.result()
    if leak and number % leak == 0:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    print(number, flush=True)
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "STEADY_S", 1.0)
    monkeypatch.setattr(soak, "REST_MAX_S", 60.0)


def served(leak: int) -> Iterator[soak.Finding]:
    command = [sys.executable, "-c", SERVER, str(leak)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        process = soak.Watched("server", server.pid)
        for requests in (20, 200):
            for _ in range(requests):
                print(file=server.stdin, flush=True)
                server.stdout.readline()
            process.sample()
            soak.rest([process])
        process.sample()
        yield from soak.findings([process])
        server.stdin.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("leak", "left"), [(0, 0), (100, 2), (10, 20)])
def test_a_leak_of_one_thread_in_many_requests_is_found_and_a_pool_is_none(
    leak: int, left: int
) -> None:
    found = {finding.what: finding for finding in served(leak)}
    assert found["threads at rest"].rise == left
    assert found["threads at rest"].flat == (not leak)
    assert found["descriptors at rest"].flat


def test_calls_that_come_together_are_no_leak_and_what_piles_up_under_load_is_one() -> None:
    chance = random.Random(7)
    for _ in range(1000):
        connections = [12 + chance.gauss(0, 3) for _ in range(soak.SAMPLES)]
        assert descriptors_under_load(connections).flat
        piled_up = [count + 0.3 * number for number, count in enumerate(connections)]
        assert not descriptors_under_load(piled_up).flat


def descriptors_under_load(counts: list[float]) -> soak.Finding:
    process = soak.Watched("server", 0, {"memory KiB": [0.0] * soak.SAMPLES, "descriptors": counts})
    process.rests.append({})
    found = {finding.what: finding for finding in soak.findings([process])}
    return found["descriptors"]


@pytest.mark.parametrize(
    ("name", "what", "kept"),
    [
        ("worker", "threads", soak.LINES),
        ("worker", "descriptors", soak.LINES),
        ("enclave", "descriptors", soak.LINES),
        ("enclave", "threads", 0),
        ("host", "threads", 1),
        ("host", "descriptors", 1),
        ("spawner", "threads", 0),
    ],
)
def test_connections_that_are_kept_are_no_leak_and_one_more_is(
    name: str, what: str, kept: float
) -> None:
    def flat(left: float) -> bool:
        process = soak.Watched(name, 0, {}, [{what: 5.0}, {what: 5.0 + left}])
        (found,) = soak.findings([process])
        return found.flat

    assert flat(1 + kept)
    assert not flat(2 + kept)
