"""What serving takes: memory of models, and the processor's features (SPEC 8.8)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from casemate.tensors import TensorSpec
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.attacker import genuine
from tests.support.vendor_models import seal

if TYPE_CHECKING:
    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
MIB = 1 << 20
WIDTH = 256
ENDS = {
    "inputs": (TensorSpec("x", "FP32", (0, WIDTH)),),
    "outputs": (TensorSpec("y", "FP32", (0, WIDTH)),),
}


def test_the_same_kernels_run_inside_the_sandbox_and_outside(
    deployment: LocalDeployment, tmp_path: Path
) -> None:
    """Bit for bit: other kernels, chosen for a processor misread, add in another order."""
    onnx = onnx_bytes.mlp(WIDTH, 3)
    x = np.random.default_rng(7).standard_normal((64, WIDTH)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    plain = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    [expected] = plain.run(["y"], {"x": x})
    genuine(deployment).load(seal(deployment, tmp_path, onnx, version=600, **ENDS))
    try:
        with deployment.client() as client:
            answer = client.infer(f"{MODEL}:600", {"x": x}).outputs["y"]
    finally:
        genuine(deployment).unload(MODEL, 600)
    assert answer.tobytes() == expected.tobytes()


COUNT = """
import gc, sys, threading, time
from pathlib import Path
from casemate.sealed_model import ModelContents
from casemate_enclave.memory import cost_of_loading, cost_of_serving
from tests.support import onnx_bytes, workers
from tests.support.workers import header, private_bytes, processes

def ends(width):
    return [{name: ("FP32", (0, width))} for name in "xy"]

path, width, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
runtime = workers.runtime()
keep = [runtime.load(ModelContents.of({"m": onnx_bytes.mlp(16, 1)}), header(*ends(16)))]
size, highest, stopped = path.stat().st_size, 0, threading.Event()

def taken():  # by all workers, and by the contents that are kept for them
    return sum(map(private_bytes, processes())) + (len(keep) - 1) * size

def watch():
    global highest
    while not stopped.wait(0.002):
        highest = max(highest, taken() + size)

before = taken()
watcher = threading.Thread(target=watch)
watcher.start()
for _ in range(count):
    contents = ModelContents.of({"m": path.read_bytes()})
    keep.append(runtime.load(contents, header(*ends(width))))
stopped.set()
watcher.join()
print(taken() - before, count * cost_of_serving(size))
print(highest - before, (count - 1) * cost_of_serving(size) + cost_of_loading(size))
"""


@pytest.mark.parametrize(("width", "layers", "count"), [(2048, 4, 1), (64, 2, 30), (512, 4, 6)])
def test_models_take_no_more_memory_than_they_are_counted_with(
    tmp_path: Path, width: int, layers: int, count: int
) -> None:
    root = Path(__file__).resolve().parents[2]
    model = tmp_path / "model.onnx"
    model.write_bytes(onnx_bytes.mlp(width, layers))
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(model), str(width), str(count)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "ORT_DISABLE_TELEMETRY": "1"},
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        taken, counted = map(int, line.split())
        assert taken <= counted, (taken / MIB, counted / MIB)
