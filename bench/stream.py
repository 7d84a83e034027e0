"""What a stream is worth beside unary calls: the small model, the same client, host and enclave.

Unary calls are made by as many threads as questions are in flight on the stream. Both take turns in
blocks. Run by `make bench`, from the root of the repository and with a staged tree:
`python -m bench.stream [--json]`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from casemate_devkit.local import MODEL
from tests.support.deployment import DATA, prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.client import Client

IN_FLIGHT = 32
BLOCK = 1500  # questions
ROUNDS = 7
TARGET = 2.0  # of the unary throughput
TREE = Path(__file__).resolve().parents[1] / ".stage/tree"


def stream_block(client: Client, rows: dict[str, np.ndarray]) -> None:
    """Ask ``BLOCK`` questions on one stream."""
    with client.stream(MODEL, in_flight=IN_FLIGHT) as stream:
        for _ in stream.map(rows for _ in range(BLOCK)):
            pass


def per_second(act: Callable[[], object]) -> float:
    """Return how many questions a second a block gives."""
    begun = time.perf_counter()
    act()
    return BLOCK / (time.perf_counter() - begun)


def main() -> int:
    """Measure, print, and return 1 if the target is missed."""
    rows = {"features": np.ascontiguousarray(DATA.features[:4])}
    rates: dict[str, list[float]] = {"unary": [], "stream": []}
    with (
        tempfile.TemporaryDirectory(prefix="cm-") as folder,
        prepared(Path(folder), TREE) as world,
    ):
        sealed = world.seal_model(DATA.onnx)
        world.start_enclave()
        world.start_host([sealed], tapped=False)  # a tap would add its own time to both
        world.wait_until_serving()
        with world.client() as client, ThreadPoolExecutor(IN_FLIGHT) as threads:

            def unary_block() -> None:
                for _ in threads.map(lambda _: client.infer(MODEL, rows), range(BLOCK)):
                    pass

            for number in range(ROUNDS + 1):
                unary, stream = (
                    per_second(unary_block),
                    per_second(lambda: stream_block(client, rows)),
                )
                if number:  # the first is a warm-up
                    rates["unary"].append(unary)
                    rates["stream"].append(stream)
    return report(rates)


def report(rates: dict[str, list[float]]) -> int:
    """Print rates and their ratio."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [s / u for s, u in zip(rates["stream"], rates["unary"], strict=True)]
    ratio = statistics.median(ratios)
    if "--json" in sys.argv[1:]:
        judged = {"name": "stream / unary", "value": round(ratio, 3), "target": TARGET}
        facts = {name: round(value, 1) for name, value in medians.items()}
        print(json.dumps({"bench": "stream", "per_second": facts, "ratios": [judged]}))
    else:
        print(f"stream: {IN_FLIGHT} in flight, 4 rows of the small model")
        for name, median in medians.items():
            low, high = min(rates[name]), max(rates[name])
            print(f"  {name:<34} {median:9.0f} /s   (from {low:.0f} to {high:.0f})")
        verdict = "met" if ratio >= TARGET else "MISSED"
        print(f"  {'stream / unary':<50} {ratio:6.2f}   at least {TARGET:g}: {verdict}")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
