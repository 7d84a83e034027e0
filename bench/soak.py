"""A service under mixed load for a long time: memory, threads and descriptors stay where they are.

The deployment of the demonstration, every process real. Callers come and go in both key modes,
some ask what is refused, and the metrics page is read. From the second half of the samples a line
is fitted; what it rises over that half must stay below a bound. `make soak` runs it for
SOAK_MINUTES (30); from the root of the repository and with a staged tree.
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
from typing import TYPE_CHECKING, Final

import numpy as np

from casemate.errors import CasemateError, Code
from casemate_devkit.local import MODEL
from tests.support.deployment import DATA, prepared
from tests.support.workers import descendants

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment

TREE = Path(__file__).resolve().parents[1] / ".stage/tree"
MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
PAUSE_S = float(os.environ.get("SOAK_PAUSE_MS", "10")) / 1000  # of each caller between two calls
SAMPLES = 120
CALLERS = 4
CALLS_A_CLIENT = 50  # then a new client: new evidence, new session, new data key
# What the line may rise over the second half. Memory: below 1.4 KB a request even in two minutes.
BOUNDS: Final = {"memory KiB": 8192.0, "threads": 1.0, "descriptors": 1.0}
METRICS: Final = '\n[metrics]\nlisten = "127.0.0.1:0"\n'
EXPECTED: Final = frozenset({Code.OK, Code.INVALID_INPUT, Code.OVERLOADED})


@dataclass
class Watched:
    """One process and its samples."""

    name: str
    pid: int
    samples: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in BOUNDS})

    def sample(self) -> None:
        """Read what the kernel says of it."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        lines = dict(line.split(":", 1) for line in status.splitlines())
        self.samples["memory KiB"].append(float(lines["VmRSS"].split()[0]))
        self.samples["threads"].append(float(lines["Threads"]))
        # Of a process that cannot be dumped they are root's to see.
        with contextlib.suppress(PermissionError):
            descriptors = len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
            self.samples["descriptors"].append(float(descriptors))

    def rise(self, what: str) -> float:
        """What the fitted line rises over the second half of the samples."""
        half = self.samples[what][len(self.samples[what]) // 2 :]
        slope = statistics.linear_regression(range(len(half)), half).slope
        return slope * (len(half) - 1)


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
        callers = Callers(world)
        try:
            watch(watched, lambda: scrape(host["metrics"]))
        finally:
            callers.end()
    return report(watched, callers.ends)


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


def report(watched: list[Watched], ends: dict[str, int]) -> int:
    """Print what rose; return 1 if it is too much."""
    rises = [
        (process, what, process.rise(what), bound)
        for process in watched
        for what, bound in BOUNDS.items()
        if process.samples[what]
    ]
    unexpected = {code: count for code, count in ends.items() if code not in EXPECTED}
    failed = bool(unexpected) or any(rise > bound for *_, rise, bound in rises)
    if "--json" in sys.argv[1:]:
        rows = [
            {"process": p.name, "what": what, "last": p.samples[what][-1], "rise": round(rise, 2)}
            for p, what, rise, _ in rises
        ]
        print(json.dumps({"bench": "soak", "minutes": MINUTES, "ends": ends, "rises": rows}))
        return int(failed)
    print(f"soak: {MINUTES:g} minutes, ends of calls: {ends}")
    for process, what, rise, bound in rises:
        verdict = f"(at most {bound:g}) {'flat' if rise <= bound else 'RISES'}"
        last = process.samples[what][-1]
        print(f"  {process.name:<8} {what:<12} {last:9.0f}  {rise:+9.2f} {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
