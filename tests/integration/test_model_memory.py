"""Memory that a model of some hundred megabytes takes: to be sealed, and to be opened (SPEC 8)."""

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
WEIGHTS = 256 * MIB


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of 256 MiB of weights; on disk it takes none, for they are zero."""
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    weights = tensor("w", FLOAT, (WEIGHTS // 4,), b"")[:-1] + varint(WEIGHTS)
    head = field(1, node("Add", ("x", "w"), ("y",)))
    tail = field(11, value_info("x", FLOAT, (1,))) + field(12, value_info("y", FLOAT, (1,)))
    initialiser = b"\x2a" + varint(len(weights) + WEIGHTS) + weights
    length = len(head) + len(initialiser) + WEIGHTS + len(tail)
    with path.open("wb") as file:
        file.write(b"\x3a" + varint(length) + head + initialiser)
        file.seek(WEIGHTS, 1)
        file.write(tail)
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
    size = model.stat().st_size
    sealed = tmp_path / "model.sealed"
    sealing = measured("seal", model, sealed)
    assert sealing["reported"] == size
    assert sealing["steps"] == 257  # a bar that moves
    assert sealing["grown"] < 0.1 * size
    opening = measured("open", model, sealed)
    assert opening["opened"] == size
    assert size <= opening["file"] < 1.01 * size
    assert opening["grown"] < 0.1 * size  # beside the memory file
