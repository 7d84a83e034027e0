"""`make accelerator`: the accelerator that is tried, and one deployment for all tests."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.accelerated import Accelerator, convolving, deep, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_devkit.local import LocalDeployment

MODELS = deep(8, 256, 4), convolving(4)


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    """The one that ACCELERATOR names."""
    return Accelerator(os.environ.get("ACCELERATOR", "openvino"))


@pytest.fixture(scope="session")
def world(accelerator: Accelerator) -> Iterator[LocalDeployment]:
    """A deployment with the accelerator; each model is a version."""
    with (
        tempfile.TemporaryDirectory(prefix="cm-") as folder,
        serving(Path(folder), accelerator, MODELS) as served,
    ):
        yield served
