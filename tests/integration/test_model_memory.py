"""Memory that a model of some hundred megabytes takes: to be sealed, opened and served (SPEC 8)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.onnx_bytes import FLOAT, field, node, tensor, value_info

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.slow]
MIB = 1 << 20
WIDTH = 8192
WEIGHTS = WIDTH * WIDTH * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of 256 MiB of weights; on disk it takes none, for they are zero."""
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    weights = tensor("w", FLOAT, (WIDTH, WIDTH), b"")[:-1] + varint(WEIGHTS)
    head = field(1, node("MatMul", ("x", "w"), ("y",))) + field(2, "large")
    row = (1, WIDTH)
    tail = field(11, value_info("x", FLOAT, row)) + field(12, value_info("y", FLOAT, row))
    initialiser = b"\x2a" + varint(len(weights) + WEIGHTS) + weights
    length = len(head) + len(initialiser) + WEIGHTS + len(tail)
    with path.open("wb") as file:
        file.write(field(1, 8) + b"\x3a" + varint(length) + head + initialiser)
        file.seek(WEIGHTS, 1)
        file.write(tail + field(8, field(1, "") + field(2, 13)))
    return path


def varint(value: int) -> bytes:
    return field(1, value)[1:]


def measured(action: str, *paths: Path) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-m", "tests.support.memory_child", action, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    facts: dict[str, Any] = json.loads(child.stdout)
    return facts


def test_a_model_is_sealed_and_opened_in_bounded_memory(model: Path, tmp_path: Path) -> None:
    sealed = tmp_path / "model.sealed"
    sealing = measured("seal", model, sealed)
    size = sealing["reported"]
    assert 0 <= size - model.stat().st_size < 70  # the weights are aligned
    assert sealing["steps"] == 257  # a bar that moves
    assert sealing["grown"] < 0.1 * size
    opening = measured("open", model, sealed)
    assert opening["opened"] == size
    assert size <= opening["file"] < 1.01 * size
    assert opening["grown"] < 0.1 * size  # beside the memory file


def test_a_served_model_takes_what_its_budget_says_in_all_processes_together(
    model: Path, tmp_path: Path
) -> None:
    """8.8.4: 4 times its contents while it is loaded, then 2.25 times, and 8 MiB."""
    size = model.stat().st_size
    sealed = tmp_path / "model.sealed"
    measured("seal", model, sealed)
    serving = measured("serve", model, sealed)
    assert serving["file"] >= size
    assert serving["worker"] > 0.99 * size  # the weights are there, so the measure sees them
    assert serving["file"] + serving["worker"] < 2.25 * size + 8 * MIB
    # More than there was, if the worker had the whole file mapped at its worst moment.
    assert serving["file"] + serving["worker_peak"] < 4 * size + 8 * MIB
