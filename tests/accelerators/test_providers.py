"""An enclave that runs models on an accelerator (SPEC 8.11): sealed requests, real processes.

Run by `make accelerator`, which names the accelerator and stages its tree. Nothing is skipped:
where something is missing, this fails.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from casemate.attestation.configuration import CPU
from casemate.errors import CasemateError, Code
from casemate_devkit.local import MODEL
from tests.accelerators.conftest import MODELS
from tests.support.accelerated import deep, events, products, serving, workers_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_devkit.local import LocalDeployment
    from tests.support.accelerated import Accelerator

pytestmark = pytest.mark.integration

DEEP, CONVOLVING = 1, 2
# Of the largest output: both compute in FP32 and add in another order.
TOLERANCE = 1e-4
ROWS = np.random.default_rng(1).random((8, 256), dtype=np.float32)
IMAGES = np.random.default_rng(2).random((4, 3, 32, 32), dtype=np.float32)


def sealed(world: LocalDeployment, version: int, x: np.ndarray) -> np.ndarray:
    """The output ``y`` for ``x``, through client, host and enclave."""
    with world.client() as client:
        answer: np.ndarray = client.infer(MODEL, {"x": x}, version=version).outputs["y"]
        return answer


def plain(version: int, x: np.ndarray) -> np.ndarray:
    """What onnxruntime says of it on the processor, here."""
    session = onnxruntime.InferenceSession(MODELS[version - 1], providers=[CPU])
    answer: np.ndarray = session.run(["y"], {"x": x})[0]
    return answer


def code_of(act: Callable[[], object]) -> Code:
    with pytest.raises(CasemateError) as caught:
        act()
    return caught.value.code


@pytest.mark.parametrize(("version", "x"), [(DEEP, ROWS), (CONVOLVING, IMAGES)])
def test_sealed_answers_agree_with_the_processors(
    world: LocalDeployment, version: int, x: np.ndarray
) -> None:
    expected = plain(version, x)
    difference = np.abs(sealed(world, version, x) - expected).max()
    assert difference <= TOLERANCE * np.abs(expected).max()


def test_nodes_run_on_the_accelerator(world: LocalDeployment) -> None:
    placed = [event["count"] for event in events(world, "MODEL_PLACED")]
    assert placed[:2] == [100, 100]


def test_the_providers_library_is_in_the_workers_alone(
    world: LocalDeployment, accelerator: Accelerator
) -> None:
    library = f"libonnxruntime_providers_{accelerator.name}.so"
    assert world.enclave is not None
    assert library not in Path(f"/proc/{world.enclave.latest['pid']}/maps").read_text()
    for worker in workers_of(world):
        assert library in Path(f"/proc/{worker}/maps").read_text()


def test_c5_a_worker_that_dies_is_replaced_and_others_are_served(world: LocalDeployment) -> None:
    expected = sealed(world, DEEP, ROWS)
    for worker in workers_of(world):
        os.kill(worker, signal.SIGKILL)
    assert np.array_equal(sealed(world, DEEP, ROWS), expected)
    ended = events(world, "WORKER_ENDED")
    assert len(ended) == len(MODELS)
    assert {event["count"] for event in ended} == {int(signal.SIGKILL)}
    deadline = time.monotonic() + 60
    while len(workers_of(world)) < len(MODELS):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert sealed(world, CONVOLVING, IMAGES).shape == (4, 16, 32, 32)


def test_a_run_that_needs_too_much_memory_fails_alone(
    accelerator: Accelerator, short_path: Path
) -> None:
    """OpenVINO takes the memory of all runs when it loads a model, and no model without bounds."""
    small, much = np.ones((3, 1), np.float32), np.ones((120_000, 1), np.float32)  # 57 GB
    if accelerator.name == "openvino":
        with serving(short_path, accelerator, [products(3), products(len(much))]) as world:
            assert np.array_equal(sealed(world, 1, small), np.ones((3, 3)))
            assert code_of(lambda: sealed(world, 2, much)) is Code.UNKNOWN_MODEL
            assert len(events(world, "MODEL_REFUSED")) == 1
        return
    with serving(short_path, accelerator, [products("n")]) as world:
        assert np.array_equal(sealed(world, 1, small), np.ones((3, 3)))
        assert code_of(lambda: sealed(world, 1, much)) is Code.MODEL_FAILED
        assert np.array_equal(sealed(world, 1, small), np.ones((3, 3)))


def test_c2_openvino_is_given_no_model_of_varying_shapes(
    accelerator: Accelerator, short_path: Path
) -> None:
    """Out of memory in a run, it would answer with an earlier caller's outputs; CUDA says so."""
    varying = [deep("n", 256, 4), products("n")]
    with serving(short_path, accelerator, [MODELS[0], *varying]) as world:
        refused = len(varying) if accelerator.name == "openvino" else 0
        assert len(events(world, "MODEL_REFUSED")) == refused
        assert np.array_equal(sealed(world, 1, ROWS), sealed(world, 1, ROWS))


def test_a_configuration_for_the_processor_alone_gives_a_worker_nothing_more(
    accelerator: Accelerator, short_path: Path
) -> None:
    with serving(short_path, accelerator, [MODELS[DEEP - 1]], (CPU,)) as world:
        assert np.array_equal(sealed(world, 1, ROWS), sealed(world, 1, ROWS))
        assert not events(world, "MODEL_PLACED")
        [worker] = workers_of(world)
        assert f"providers_{accelerator.name}" not in Path(f"/proc/{worker}/maps").read_text()
