"""Inside the sandbox onnxruntime sees the processor as outside, and so chooses the same kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.accelerated import deep

SCRIPT = """
import hashlib, os, sys
from casemate_enclave import sandbox
if sys.argv[1] == "blind":
    sandbox._MACHINE_FACTS = ()
if sys.argv[1] != "outside":
    readable = {sys.base_prefix, sys.prefix, "/usr", "/lib", "/lib64", "/etc", os.getcwd()}
    sandbox.confine_files([path for path in sorted(readable) if os.path.exists(path)], [])
import numpy as np
import numpy.random
import onnxruntime
from casemate_enclave.runtime import session_options
if sys.argv[1] != "outside":
    sandbox.confine_spawner()
    sandbox.confine_worker()
model = os.read(0, 1 << 24)
session = onnxruntime.InferenceSession(model, session_options([], 1))
rows = np.random.default_rng(4).random((8, 512), dtype=np.float32)
print(hashlib.sha256(session.run(["y"], {"x": rows})[0].tobytes()).hexdigest())
"""
OUTSIDE, INSIDE, BLIND = "outside", "inside", "blind"


def run(where: str, folder: Path) -> tuple[str, str]:
    """The digest of a model's answer, and what onnxruntime had to say of the processor."""
    model = folder / "model.onnx"
    model.write_bytes(deep(8, 512, 4))
    environment = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
    with model.open("rb") as given:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, where],
            check=False,
            capture_output=True,
            text=True,
            stdin=given,
            cwd=Path(__file__).resolve().parents[3],
            env={**os.environ, **environment},
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "cpuinfo" in line]
    return done.stdout.strip(), "\n".join(said)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return run(OUTSIDE, tmp_path_factory.mktemp("outside"))


def test_the_processor_is_seen_inside_as_outside(outside: tuple[str, str], tmp_path: Path) -> None:
    assert run(INSIDE, tmp_path) == outside
    assert not outside[1]


def test_without_the_processors_facts_onnxruntime_has_to_guess(tmp_path: Path) -> None:
    assert "cpuinfo" in run(BLIND, tmp_path)[1]
