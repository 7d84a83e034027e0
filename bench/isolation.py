"""What it costs that a model runs in a process of its own (docs/decisions/0018).

`python -m bench.isolation [--json]`, from the root of the repository. The models do next to
nothing, so what is measured is the way there and back: one row of thirty features, and an image of
600 KiB. A bare round trip of one small packet between two processes says how much of it is the
machine's: on an idle virtual one, waking a processor is most of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from bench.rounds import measure, ratio, report
from casemate.sealed_model import ModelContents
from casemate_enclave.runtime import OnnxRuntime
from casemate_enclave.workers import packets
from tests.support import onnx_bytes, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS: Final = 400
SMALL: Final = 256  # bytes
ECHO: Final = """
import socket
with socket.socket(fileno=0) as channel:
    while packet := channel.recv(4096):
        channel.send(packet)
"""
RUN_BYTES: Final = 64 << 20
# Shape and target of each: a round trip between two processes beside some microseconds of model.
CASES: Final = {"30 features": ((1, 30), 8.0), "600 KiB": ((1, 153_600), 5.0)}


def cases(shape: tuple[int, ...]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the run of a model, in this process and in a worker."""
    ends = [onnx_bytes.value_info(name, onnx_bytes.FLOAT, ("n", "m")) for name in "xy"]
    axes = onnx_bytes.node("ReduceMax", ("x",), ("y",))
    content = onnx_bytes.model(onnx_bytes.graph((axes,), (ends[0],), (ends[1],)))
    header = workers.header({"x": ("FP32", (0, 0))}, {"y": ("FP32", (0, 0))})
    inside = OnnxRuntime(["CPUExecutionProvider"], run_bytes=RUN_BYTES, threads=1)
    models = [
        runtime.load(ModelContents.of({"m": content}), header)
        for runtime in (inside, workers.runtime(run_bytes=RUN_BYTES))
    ]
    x = {"x": np.ones(shape, np.float32)}
    here, there = (lambda m=m: m.run(x, ["y"], time.monotonic() + 30) for m in models)
    return here, there


@contextmanager
def echo() -> Iterator[Callable[[], object]]:
    """Yield a bare round trip to another process."""
    ours, theirs = packets.pair()
    command = [sys.executable, "-c", ECHO]
    with ours, subprocess.Popen(command, stdin=theirs.fileno()):  # noqa: S603 - ours
        theirs.close()
        memory = bytearray(SMALL)

        def there_and_back() -> None:
            ours.send(memory)
            ours.recv_into(memory)

        there_and_back()
        yield there_and_back
        ours.close()


def main() -> int:
    """Measure, print, and return 1 if a worker costs more than its target."""
    with echo() as bare:
        times = measure({"bare round trip": bare}, ROUNDS)
    for name, (shape, _) in CASES.items():
        here, there = cases(shape)
        times |= measure({f"{name}, in process": here, f"{name}, in a worker": there}, ROUNDS)
    ratios = [
        ratio(times, f"{name}, in a worker", f"{name}, in process", target)
        for name, (_, target) in CASES.items()
    ]
    return report("models in processes of their own", times, ratios)


if __name__ == "__main__":
    sys.exit(main())
