"""What an accelerator is worth: sealed requests a second, beside the same enclave on the processor.

``python -m bench.accelerator --accelerator cuda``: one staged tree, two configurations, the same
model of some 100 billion operations a request. Both enclaves serve at once; each gets the same
requests in turn, from one caller and from several.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from casemate.attestation.configuration import CPU
from casemate_devkit.local import MODEL
from tests.support.accelerated import PROVIDERS, Accelerator, deep, serving

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.client import Client


def seconds(client: Client, rows: np.ndarray, callers: int, requests: int) -> float:
    """Seconds for each of ``requests``, from ``callers`` at a time."""
    with ThreadPoolExecutor(callers) as pool:
        before = time.perf_counter()
        for asked in [pool.submit(client.infer, MODEL, {"x": rows}) for _ in range(requests)]:
            asked.result()
        return (time.perf_counter() - before) / requests


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.accelerator")
    parser.add_argument("--accelerator", choices=sorted(PROVIDERS), default="openvino")
    parser.add_argument("--width", type=int, default=1024, help="of each layer")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    accelerator = Accelerator(options.accelerator)
    model = deep(options.rows, options.width, options.layers)
    rows = np.random.default_rng(3).random((options.rows, options.width), dtype=np.float32)
    sides = {accelerator.provider: None, CPU: (CPU,)}
    found: dict[str, dict[int, list[float]]] = {name: {1: [], 4: []} for name in sides}
    with (
        tempfile.TemporaryDirectory(prefix="cm-") as one,
        tempfile.TemporaryDirectory(prefix="cm-") as two,
    ):
        folders = Path(one), Path(two)
        with (
            serving(folders[0], accelerator, [model], threads=options.threads) as fast,
            serving(folders[1], accelerator, [model], (CPU,), threads=options.threads) as slow,
            fast.client() as quick,
            slow.client() as usual,
        ):
            clients = {accelerator.provider: quick, CPU: usual}
            answers = [c.infer(MODEL, {"x": rows}).outputs["y"] for c in clients.values()]
            for _ in range(options.rounds):
                for callers in (1, 4):
                    for name, client in clients.items():
                        found[name][callers].append(seconds(client, rows, callers, 4 * callers))
    apart = float(np.abs(answers[0] - answers[1]).max() / np.abs(answers[1]).max())
    work = 2 * options.rows * options.width**2 * options.layers
    report = {
        "giga_operations": round(work / 1e9, 1),
        "threads": options.threads,
        "largest_difference": apart,
        "requests_per_second": {
            name: {callers: round(1 / float(np.median(times)), 1) for callers, times in by.items()}
            for name, by in found.items()
        },
    }
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
