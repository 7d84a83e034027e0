"""Small requests on one shared connection, beside a connection for each exchange (SPEC 9.2.1).

The host's relay in this process and a staged enclave, with 1 and with 32 requests in flight; both
kinds take turns, block by block. Counted is processor time, of both processes together: what a hop
costs a busy machine. Run by `make bench`: `python -m bench.hop [--json]`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

from bench.peers import processor
from bench.rounds import ratio, report
from bench.sandbox import Side
from casemate import limits
from casemate.envelope.sealed_message import encode_sealed
from casemate.frames import FrameType
from casemate_host.call import Call
from casemate_host.relay import Relay
from tests.support.attacker import genuine

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS: Final = 15
REQUESTS: Final = 480  # in a block: processor time is counted in hundredths of a second
LOADS: Final = (1, 32)
# With one in flight nothing is shared; it may then cost no more than a connection of its own.
TARGETS: Final = {1: 1.1, 32: 0.95}
_LIMIT: Final = {"own": -1, "shared": limits.NUMBERED_MAX}


def block(side: Side, relay: Relay, in_flight: int) -> float:
    """Microseconds of processor time for each request, host's and enclave's."""
    calls = [side.session.seal() for _ in range(REQUESTS)]
    sealed = [b"".join(encode_sealed(call.header, call.ciphertext)) for call in calls]

    def work(start: int) -> None:
        for payload in sealed[start::in_flight]:
            relay.exchange(FrameType.REQUEST, payload, Call(60))

    enclave = {int(side.launcher.ready["pid"])}
    with ThreadPoolExecutor(in_flight) as pool:
        barrier = threading.Barrier(in_flight)
        list(pool.map(lambda _: barrier.wait(), range(in_flight)))  # threads are there
        before = time.process_time() + processor.seconds(enclave)
        list(pool.map(work, range(in_flight)))
        spent = time.process_time() + processor.seconds(enclave) - before
    return spent / REQUESTS * 1e6


def measure(side: Side) -> Iterator[tuple[str, float]]:
    """Yield (case, microseconds) for each block."""
    relays = {name: Relay(genuine(side.world).address, 32, lambda: None) for name in _LIMIT}
    for number in range(ROUNDS):
        for in_flight in LOADS:
            for name in list(_LIMIT)[:: 1 if number % 2 else -1]:
                with mock.patch.object(limits, "NUMBERED_MAX", _LIMIT[name]):
                    yield f"{name}, {in_flight} in flight", block(side, relays[name], in_flight)
    for relay in relays.values():
        relay.close()


def main() -> int:
    """Measure, print, and return 1 if a target is missed."""
    tree = Path(os.environ.get("CASEMATE_TREE", Path(__file__).parents[1] / ".stage/tree"))
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="cm-") as base:
        side = Side(Path(base), tree.resolve(), walls=True)
        with side.world:
            for case, micros in measure(side):
                times.setdefault(case, []).append(micros)
    ratios = [
        ratio(times, f"shared, {load} in flight", f"own, {load} in flight", TARGETS[load])
        for load in LOADS
    ]
    return report("hop", times, ratios)


if __name__ == "__main__":
    sys.exit(main())
