"""The deployment of the demonstration, started for tests."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from casemate_devkit.demo.scenes import Data
from casemate_devkit.forms import MachineForm, ProcessForm
from casemate_devkit.local import LIMITS, LocalDeployment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.attestation import ServiceLimits
    from casemate_devkit.forms import Form

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/wdbc"
DATA = Data.load(EXAMPLE)


VM = ROOT / ".qemu"
FORMS: dict[str, Form] = {
    "process": ProcessForm(),
    "vm": MachineForm(tools=VM / "tools", images=VM / "images"),
    "nitro-enclave": MachineForm(tools=VM / "tools", images=VM / "images", name="nitro-enclave"),
}
_chosen = ["process"]


def choose_form(name: str) -> None:
    """Run every deployment of this test run in a form of FORMS: pytest's option `--form`."""
    _chosen[:] = [name]


def chosen_form() -> Form:
    """What `--form` says."""
    return FORMS[_chosen[0]]


@contextlib.contextmanager
def prepared(
    base: Path, tree: Path, limits: ServiceLimits = LIMITS, form: Form | None = None
) -> Iterator[LocalDeployment]:
    """KMS, keys and policies; neither enclave nor host runs yet. The form is the chosen one."""
    with LocalDeployment(base, tree, form or chosen_form()) as world:
        world.start_kms()
        world.agree(world.form.measure(tree), limits)
        yield world


@contextlib.contextmanager
def running(base: Path, tree: Path, form: Form | None = None) -> Iterator[LocalDeployment]:
    """Everything, with the model loaded and every byte of the relay recorded."""
    with prepared(base, tree, form=form) as world:
        sealed = world.seal_model(DATA.onnx)
        world.start_enclave()
        world.start_host([sealed])
        world.wait_until_serving()
        yield world
