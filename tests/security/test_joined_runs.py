"""Callers whose requests run together with those of others (THREATS.md: C2), in real processes.

The model takes about a millisecond and has one place, so that of a dozen callers most wait and are
joined. One input of it is an index: one that does not exist makes the whole run fail.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casemate.errors import CasemateError, Code
from casemate.sealed_model import Serving
from casemate.tensors import TensorSpec
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.attacker import genuine
from tests.support.vendor_models import seal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]
WIDTH = 512
VERSION = 500
TABLE = np.array([10, 20, 30], np.float32)
SECONDS = 3.0
IO = {
    "inputs": (TensorSpec("x", "FP32", (0, WIDTH)), TensorSpec("index", "INT64", (0,))),
    "outputs": (TensorSpec("y", "FP32", (0, WIDTH)), TensorSpec("picked", "FP32", (0,))),
}


@pytest.fixture
def joined(deployment: LocalDeployment, tmp_path: Path) -> Iterator[None]:
    serving = Serving(0, batch_rows=64, concurrency=1)
    onnx = onnx_bytes.guarded_mlp(WIDTH, 6)
    genuine(deployment).load(
        seal(deployment, tmp_path, onnx, version=VERSION, serving=serving, **IO)
    )
    yield
    genuine(deployment).unload(MODEL, VERSION)


def question(caller: int, turn: int) -> dict[str, np.ndarray]:
    rows = 1 + (caller + turn) % 3
    picks = (np.arange(rows) + caller + turn) % 3
    return {
        "x": np.full((rows, WIDTH), caller + turn / 8, np.float32),
        "index": picks.astype(np.int64),
    }


def ask(client: Client, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(client.infer(f"{MODEL}:{VERSION}", inputs, timeout_s=60).outputs)


def going_on(end: float, served: list[int], poisoned: list[int]) -> bool:
    """For a while, and on a slow machine until there were enough of both."""
    enough = served[0] > 20 and poisoned[0] > 5
    return time.monotonic() < (end if enough else end + 80)


@pytest.mark.usefixtures("joined")
def test_c2_joined_callers_get_their_own_rows_and_a_poisoned_one_fails_alone(
    deployment: LocalDeployment,
) -> None:
    wrong: list[object] = []
    served, poisoned = [0], [0]
    end = time.monotonic() + SECONDS

    def honest(caller: int) -> None:
        with deployment.client() as client:
            alone = ask(client, question(caller, 0))["y"]  # what a row of this caller's gives
            turn = 0
            while going_on(end, served, poisoned):
                turn += 1
                inputs = question(caller, turn)
                answer = ask(client, inputs)
                right = answer["picked"].tolist() == TABLE[inputs["index"]].tolist()
                # Relu layers without bias scale with their input: so this caller's rows are known.
                scale = inputs["x"][0, 0] / caller
                expected = alone[:1] * scale
                near = np.abs(answer["y"] - expected).max() <= 1e-3 * np.abs(expected).max() > 0
                if not (right and near and len(answer["y"]) == len(inputs["x"])):
                    wrong.append((caller, turn))
                served[0] += 1

    def hostile() -> None:
        inputs = question(1, 0)
        inputs["index"] = inputs["index"] + 1000
        with deployment.client() as client:
            while going_on(end, served, poisoned):
                try:
                    ask(client, inputs)
                    wrong.append("a poisoned request was answered")
                except CasemateError as error:
                    if error.code is not Code.MODEL_FAILED:
                        wrong.append(error.code)
                poisoned[0] += 1

    threads = [threading.Thread(target=honest, args=(caller,)) for caller in range(1, 9)]
    threads += [threading.Thread(target=hostile) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert served[0] > 20
    assert poisoned[0] > 5


def test_c2_a_model_that_lets_rows_see_each_other_is_not_served_joined(
    deployment: LocalDeployment, tmp_path: Path
) -> None:
    wide = (TensorSpec("y", "FP32", (0, 3)),)
    sealed = seal(
        *(deployment, tmp_path, onnx_bytes.mixing()),
        version=VERSION,
        outputs=wide,
        serving=Serving(0, batch_rows=8),
    )
    with pytest.raises(CasemateError) as refused:
        genuine(deployment).load(sealed)
    assert refused.value.code is Code.MODEL_REJECTED
