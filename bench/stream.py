"""What a stream is worth beside unary calls: the small model, the same client, host and enclave.

Unary calls are made by as many threads as questions are in flight on the stream. Both take turns in
blocks. Beside the throughput, processor time of client, host and enclave for one question, which
other work on the machine lengthens less. Run by `make bench`, from the root of the repository and
with a staged tree: `python -m bench.stream [--json]`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.peers import processor
from casemate_devkit.local import MODEL
from tests.support.deployment import DATA, prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casemate.client import Client
    from casemate_devkit.processes import Service

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


class Block(NamedTuple):
    """What one block gave."""

    per_second: float
    spent_us: dict[str, float]  # processor time for a question, by process


def measured(act: Callable[[], object], processes: Mapping[str, set[int]]) -> Block:
    """Ask one block."""
    before = {name: processor.seconds(pids) for name, pids in processes.items()}
    begun = time.perf_counter()
    act()
    took = time.perf_counter() - begun
    spent = {
        name: (processor.seconds(pids) - before[name]) / BLOCK * 1e6
        for name, pids in processes.items()
    }
    return Block(BLOCK / took, spent)


def main() -> int:
    """Measure, print, and return 1 if the target is missed."""
    rows = {"features": np.ascontiguousarray(DATA.features[:4])}
    blocks: dict[str, list[Block]] = {"unary": [], "stream": []}
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

            processes = {
                "client": {os.getpid()},
                "host": {process_of(world.host)},
                "enclave": processor.family(process_of(world.enclave)),
            }
            for number in range(ROUNDS + 1):
                for name, act in (
                    ("unary", unary_block),
                    ("stream", lambda: stream_block(client, rows)),
                ):
                    block = measured(act, processes)
                    if number:  # the first is a warm-up
                        blocks[name].append(block)
    return report(blocks)


def process_of(service: Service | None) -> int:
    """Return the process of a service that was started."""
    if service is None:
        raise RuntimeError("it was not started")
    return service.pid


def spent(blocks: Sequence[Block]) -> dict[str, float]:
    """Return medians of the processor time, by process and in all."""
    by_process = {
        name: statistics.median(block.spent_us[name] for block in blocks)
        for name in blocks[0].spent_us
    }
    return {
        **by_process,
        "all": statistics.median(sum(block.spent_us.values()) for block in blocks),
    }


def report(blocks: Mapping[str, Sequence[Block]]) -> int:
    """Print rates, processor time and the ratio."""
    rates = {name: [block.per_second for block in some] for name, some in blocks.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [s / u for s, u in zip(rates["stream"], rates["unary"], strict=True)]
    ratio = statistics.median(ratios)
    micros = {name: spent(some) for name, some in blocks.items()}
    if "--json" in sys.argv[1:]:
        judged = {"name": "stream / unary", "value": round(ratio, 3), "target": TARGET}
        facts = {name: round(value, 1) for name, value in medians.items()}
        times = {name: {k: round(v, 1) for k, v in of.items()} for name, of in micros.items()}
        bench = {"bench": "stream", "per_second": facts, "processor_us": times}
        print(json.dumps({**bench, "ratios": [judged]}))
    else:
        print(f"stream: {IN_FLIGHT} in flight, 4 rows of the small model")
        for name, median in medians.items():
            low, high = min(rates[name]), max(rates[name])
            print(f"  {name:<34} {median:9.0f} /s   (from {low:.0f} to {high:.0f})")
        for name, of in micros.items():
            parts = ", ".join(f"{key} {value:.0f}" for key, value in of.items() if key != "all")
            print(f"  {name + ', processor time':<34} {of['all']:9.0f} us   ({parts})")
        verdict = "met" if ratio >= TARGET else "MISSED"
        print(f"  {'stream / unary':<50} {ratio:6.2f}   at least {TARGET:g}: {verdict}")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
