"""The forms in which a deployment on this machine runs its enclave: a process, or a machine.

Everything else of a deployment, and every test of it, is the same for both.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from casemate.attestation.measurement import Measurement
from casemate_devkit import cmdline, eif, enclave_process
from casemate_devkit.eif.build import Parts, build, measured
from casemate_devkit.eif.profile import Profile
from casemate_devkit.staging.application import checkout
from casemate_devkit.vm.toolbox import Toolbox

_PROCESS_START_S: Final = 60.0
_MACHINE_START_S: Final = 300.0  # two boots of two minutes at most
_PROFILE: Final = "docker/eif/qemu.toml"
_KEPT: Final = 6  # images of 220 MB; of older trees


class Form(Protocol):
    """How a staged tree becomes a running enclave."""

    @property
    def name(self) -> str:
        """As the enclave's evidence says it (SPEC 3.4)."""
        ...

    @property
    def start_s(self) -> float:
        """How long a start may take, in seconds."""
        ...

    def measure(self, tree: Path) -> Measurement:
        """The registers that the enclave of ``tree`` will have."""
        ...

    def launcher(self, tree: Path) -> tuple[str, ...]:
        """The module that starts it, and that module's options for ``tree``."""
        ...


@dataclass(frozen=True)
class ProcessForm:
    """The staged tree as a process, confined by the kernel (docs/decisions/0007)."""

    name: str = cmdline.PROCESS
    start_s: float = _PROCESS_START_S

    def measure(self, tree: Path) -> Measurement:
        """Measure the tree (SPEC 4.3)."""
        return enclave_process.measure(tree, self.name)

    def launcher(self, tree: Path) -> tuple[str, ...]:
        """``casemate-sim``."""
        return ("casemate_devkit.launcher", "--tree", str(tree))


@dataclass(frozen=True)
class MachineForm:
    """An enclave image of the tree, in QEMU; images are kept in the folder ``images``."""

    tools: Path
    images: Path
    name: str = "vm"
    start_s: float = _MACHINE_START_S

    def measure(self, tree: Path) -> Measurement:
        """Measure the image (SPEC 4.4)."""
        found = measured(self.image(tree))
        return Measurement(found.pcr0, found.pcr1, found.pcr2)

    def launcher(self, tree: Path) -> tuple[str, ...]:
        """``casemate_devkit.vm``."""
        return (
            *("casemate_devkit.vm", "--eif", str(self.image(tree))),
            *("--tools", str(self.tools)),
        )

    def image(self, tree: Path) -> Path:
        """The image of the tree as it is now; built unless it is there."""
        profile = checkout() / _PROFILE
        contents = enclave_process.measure(tree, cmdline.PROCESS)
        recipe = [*Path(eif.__file__).parent.glob("*.py"), profile]
        inputs = contents.pcr0 + b"".join(path.read_bytes() for path in sorted(recipe))
        path = self.images / f"{hashlib.sha256(inputs).hexdigest()[:16]}.eif"
        if not path.exists():
            self.images.mkdir(parents=True, exist_ok=True)
            tools = Toolbox.open(self.tools)
            parts = Parts(tree=tree, kernel=tools.kernel, drivers=tools.drivers)
            build(parts, Profile.load(profile), path)
            self._forget()
        return path

    def _forget(self) -> None:
        kept = sorted(self.images.glob("*.eif"), key=lambda image: image.stat().st_mtime)
        for old in kept[:-_KEPT]:
            old.unlink()
