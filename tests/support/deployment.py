"""The deployment of the demonstration, started for tests."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from casemate_devkit.demo.scenes import Data
from casemate_devkit.enclave_process import measure
from casemate_devkit.local import LIMITS, LocalDeployment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.attestation import ServiceLimits

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/wdbc"
DATA = Data.load(EXAMPLE)


@contextlib.contextmanager
def prepared(base: Path, tree: Path, limits: ServiceLimits = LIMITS) -> Iterator[LocalDeployment]:
    """KMS, keys and policies; neither enclave nor host runs yet."""
    with LocalDeployment(base, tree) as world:
        world.start_kms()
        world.agree(measure(tree, "process"), limits)
        yield world


@contextlib.contextmanager
def running(base: Path, tree: Path) -> Iterator[LocalDeployment]:
    """Everything, with the model loaded and every byte of the relay recorded."""
    with prepared(base, tree) as world:
        sealed = world.seal_model(DATA.onnx)
        world.start_enclave()
        world.start_host([sealed])
        world.wait_until_serving()
        yield world
