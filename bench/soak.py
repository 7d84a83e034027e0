"""A service under mixed load for a long time: memory, threads and descriptors stay where they are.

The deployment of the demonstration, every process real. Callers come and go in both key modes,
some ask what is refused, and the metrics page is read. From the second half of the samples of
memory and descriptors a line is fitted; what it rises over that half must stay below a bound.

Threads and descriptors are counted where nobody asks: after a warm-up, and after the load. Under
load their numbers follow the calls that happen to come together; threads that nobody needs end
(`THREAD_IDLE_S`), and connections are closed. So whatever is left after the second rest and was
not there after the first one has leaked, be it two threads in half an hour. The line of the
descriptors only finds what piles up under load and goes with it.

`make soak` runs it for SOAK_MINUTES (30) and the rests; from the root of the repository and with a
staged tree.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_devkit.local import MODEL
from tests.support.deployment import DATA, prepared
from tests.support.workers import descendants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment

TREE = Path(__file__).resolve().parents[1] / ".stage/tree"
MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
PAUSE_S = float(os.environ.get("SOAK_PAUSE_MS", "10")) / 1000  # of each caller between two calls
SAMPLES = 120
CALLERS = 4
CALLS_A_CLIENT = 50  # then a new client: new evidence, new session, new data key
# What the line may rise over the second half. Memory: below 1.4 KB a request even in two minutes.
# Descriptors: two connections of each caller; counts that lie some 3 apart give a line through 60
# of them a standard error of 1.3 by chance alone.
BOUNDS: Final = {"memory KiB": 8192.0, "descriptors": 2.0 * CALLERS}
# What may be there more after the load than after the warm-up: one connection kept alive.
REST_BOUNDS: Final = {"threads": 1.0, "descriptors": 1.0}
# A model's process keeps a connection, with a thread, for each run that was ever under way beside
# others: twice as many as there are processors (SPEC 8.8.1). The enclave has their other ends.
LINES: Final = 2.0 * len(os.sched_getaffinity(0))
# The host has connections on two sides, either of which may keep one more, with its thread.
MORE: Final = {
    ("worker", "threads"): LINES,
    ("worker", "descriptors"): LINES,
    ("enclave", "descriptors"): LINES,
    ("host", "threads"): 1.0,
    ("host", "descriptors"): 1.0,
}
WARM_UP_S: Final = 30.0
STEADY_S: Final = 2 * limits.THREAD_IDLE_S  # nothing ended for so long: it is at rest
REST_MAX_S: Final = 180.0  # an enclave's threads end one by one
METRICS: Final = '\n[metrics]\nlisten = "127.0.0.1:0"\n'
EXPECTED: Final = frozenset({Code.OK, Code.INVALID_INPUT, Code.OVERLOADED})


@dataclass
class Watched:
    """One process and its samples."""

    name: str
    pid: int
    samples: dict[str, list[float]] = field(default_factory=dict)
    rests: list[dict[str, float]] = field(default_factory=list)

    def counts(self) -> dict[str, float]:
        """Read what the kernel says of it."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        lines = dict(line.split(":", 1) for line in status.splitlines())
        counts = {
            "memory KiB": float(lines["VmRSS"].split()[0]),
            "threads": float(lines["Threads"]),
        }
        # Of a process that cannot be dumped they are root's to see.
        with contextlib.suppress(PermissionError):
            counts["descriptors"] = float(len(list(Path(f"/proc/{self.pid}/fd").iterdir())))
        return counts

    def sample(self) -> None:
        """Note it."""
        for what, count in self.counts().items():
            self.samples.setdefault(what, []).append(count)

    def left(self, what: str) -> float:
        """What is there at the last rest that was not at the first one."""
        return self.rests[-1][what] - self.rests[0][what]

    def rise(self, what: str) -> float:
        """What the fitted line rises over the second half of the samples."""
        half = self.samples[what][len(self.samples[what]) // 2 :]
        slope = statistics.linear_regression(range(len(half)), half).slope
        return slope * (len(half) - 1)


class Finding(NamedTuple):
    """How much more of something there is than before."""

    process: str
    what: str
    last: float
    rise: float
    bound: float

    @property
    def flat(self) -> bool:
        """Whether that may be."""
        return self.rise <= self.bound


class Callers:
    """Clients that come, ask and go, until they are told to end."""

    def __init__(self, world: LocalDeployment) -> None:
        self.ends: dict[str, int] = {}
        self._world = world
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(CALLERS)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Tell them to end, and wait."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            with self._world.client(kms=number % 2 == 0) as client:
                for at in range(CALLS_A_CLIENT):
                    if self._stop.wait(PAUSE_S):
                        return
                    self._count(str(self._ask(client, at)))

    def _ask(self, client: Client, at: int) -> str:
        rows = DATA.features[: 1 + at % 32]
        wrong = at % 10 == 0
        try:
            client.infer(MODEL, {"features": rows[:, :2] if wrong else np.ascontiguousarray(rows)})
        except CasemateError as error:
            return error.code
        return Code.OK

    def _count(self, end: str) -> None:
        with self._lock:
            self.ends[end] = self.ends.get(end, 0) + 1


def main() -> int:
    """Run, print, and return 1 if anything rises or a call ended in an unexpected way."""
    with (
        tempfile.TemporaryDirectory(prefix="cm-") as folder,
        prepared(Path(folder), TREE) as world,
    ):
        world.start_enclave()
        world.start_host([world.seal_model(DATA.onnx)], tapped=False, more=METRICS)
        world.wait_until_serving()
        host = world.host.ready if world.host else {}
        enclave = int(world.enclave.ready["pid"]) if world.enclave else 0
        spawner, worker = sorted(descendants(enclave))  # one model: the worker is the younger
        watched = [
            Watched("host", world.host.pid if world.host else 0),
            Watched("enclave", enclave),
            Watched("spawner", spawner),
            Watched("worker", worker),
        ]
        with asking(world):
            time.sleep(min(WARM_UP_S, MINUTES * 30))
        rest(watched)
        with asking(world) as callers:
            watch(watched, lambda: scrape(host["metrics"]))
        rest(watched)
    return report(watched, callers.ends)


@contextlib.contextmanager
def asking(world: LocalDeployment) -> Iterator[Callers]:
    """Have callers ask during the block."""
    callers = Callers(world)
    try:
        yield callers
    finally:
        callers.end()


def rest(watched: list[Watched]) -> None:
    """Wait until no thread or descriptor has gone for a while, and note what is there."""
    begun = steady = time.monotonic()
    before: list[dict[str, float]] = []
    while time.monotonic() - steady < STEADY_S and time.monotonic() - begun < REST_MAX_S:
        time.sleep(1)
        now = [process.counts() for process in watched]
        if [_kept(counts) for counts in now] != [_kept(counts) for counts in before]:
            before, steady = now, time.monotonic()
    for process in watched:
        process.rests.append(process.counts())


def _kept(counts: dict[str, float]) -> dict[str, float]:
    return {what: counts[what] for what in REST_BOUNDS if what in counts}


def watch(watched: list[Watched], scrape: Callable[[], None]) -> None:
    """Take the samples, evenly spread over the whole time."""
    begun = time.monotonic()
    for number in range(SAMPLES):
        time.sleep(max(0.0, begun + (number + 1) * MINUTES * 60 / SAMPLES - time.monotonic()))
        scrape()
        for process in watched:
            process.sample()


def scrape(address: str) -> None:
    """Read the metrics page as a collector does."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        page.read()


def findings(watched: list[Watched]) -> list[Finding]:
    """Everything that is judged."""
    found = []
    for process in watched:
        for what, bound in BOUNDS.items():
            if what in process.samples:
                last, rise = process.samples[what][-1], process.rise(what)
                found.append(Finding(process.name, what, last, rise, bound))
        for what, bound in REST_BOUNDS.items():
            if what in process.rests[-1]:
                last, left = process.rests[-1][what], process.left(what)
                most = bound + MORE.get((process.name, what), 0.0)
                found.append(Finding(process.name, f"{what} at rest", last, left, most))
    return found


def report(watched: list[Watched], ends: dict[str, int]) -> int:
    """Print what rose; return 1 if it is too much."""
    found = findings(watched)
    unexpected = {code: count for code, count in ends.items() if code not in EXPECTED}
    failed = bool(unexpected) or not all(finding.flat for finding in found)
    if "--json" in sys.argv[1:]:
        rows = [
            {"process": f.process, "what": f.what, "last": f.last, "rise": round(f.rise, 2)}
            for f in found
        ]
        print(json.dumps({"bench": "soak", "minutes": MINUTES, "ends": ends, "rises": rows}))
        return int(failed)
    print(f"soak: {MINUTES:g} minutes, ends of calls: {ends}")
    for f in found:
        verdict = f"(at most {f.bound:g}) {'flat' if f.flat else 'RISES'}"
        print(f"  {f.process:<8} {f.what:<20} {f.last:9.0f}  {f.rise:+9.2f} {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
