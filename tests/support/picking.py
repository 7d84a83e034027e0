"""A model that joins rows, for questions that are asked together: one index spoils a whole run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from casemate.envelope import questions
from casemate.errors import Code, SealedStatusError
from casemate.sealed_model import Serving
from casemate.tensors import TensorSpec, from_response, to_request
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.attacker import genuine
from tests.support.vendor_models import seal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment

WIDTH = 64
TABLE = [10.0, 20.0, 30.0]
POISON = 1000  # an index that does not exist: the run fails, whoever's rows are in it
_IO = {
    "inputs": (TensorSpec("x", "FP32", (0, WIDTH)), TensorSpec("index", "INT64", (0,))),
    "outputs": (TensorSpec("y", "FP32", (0, WIDTH)), TensorSpec("picked", "FP32", (0,))),
}


@contextlib.contextmanager
def loaded(deployment: LocalDeployment, folder: Path, version: int) -> Iterator[None]:
    """Have it loaded as ``version`` of the deployment's model; 24 rows run together."""
    onnx, serving = onnx_bytes.guarded_mlp(WIDTH, 2), Serving(0, batch_rows=24)
    genuine(deployment).load(
        seal(deployment, folder, onnx, version=version, serving=serving, **_IO)
    )
    yield
    genuine(deployment).unload(MODEL, version)


def picking(index: int) -> dict[str, np.ndarray]:
    return {"x": np.ones((1, WIDTH), np.float32), "index": np.array([index], np.int64)}


def message(index: int) -> bytes:
    return to_request(picking(index), ["picked"])


def became(part: memoryview) -> float | Code:
    """What became of one of several questions."""
    try:
        return float(from_response(questions.read(part))["picked"][0])
    except SealedStatusError as error:
        return error.code
