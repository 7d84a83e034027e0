"""The forms in which a deployment on this machine runs its enclave: a process, or a machine.

Everything else of a deployment, and every test of it, is the same for both.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from casemate.attestation.cmdline import PARENT_CID
from casemate.attestation.measurement import Measurement
from casemate_devkit import cmdline, eif, enclave_process
from casemate_devkit.eif.build import Parts, build, measured
from casemate_devkit.eif.profile import Profile
from casemate_devkit.staging.application import checkout
from casemate_devkit.vm import parent
from casemate_devkit.vm.toolbox import Toolbox

_PROCESS_START_S: Final = 180.0  # for machines whose processors stand still most of the time
_MACHINE_START_S: Final = 3700.0  # two boots of fifteen minutes at most, of two machines
_MACHINE_PACE: Final = 3.5  # 15 to 35 s a boot, where a process takes 1 to 10 on a busy machine
_PROFILE: Final = "docker/eif/qemu.toml"
_THE_ENCLAVES: Final = ("app", "packages")  # parts of a tree that a parent has others for
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

    @property
    def pace(self) -> float:
        """How many times a process's time things usually take: what a test's lives and waits need.

        A machine's processor is emulated.
        """
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
    pace: float = 1.0

    def measure(self, tree: Path) -> Measurement:
        """Measure the tree (SPEC 4.3)."""
        return enclave_process.measure(tree, self.name)

    def launcher(self, tree: Path) -> tuple[str, ...]:
        """``casemate-sim``."""
        return ("casemate_devkit.launcher", "--tree", str(tree))


@dataclass(frozen=True)
class MachineForm:
    """An enclave image of the tree, in QEMU; images are kept in the folder ``images``.

    As ``vm`` its parent is this machine; as ``nitro-enclave`` it is a machine beside it, through
    which every way leads.
    """

    tools: Path
    images: Path
    name: str = "vm"
    start_s: float = _MACHINE_START_S
    pace: float = _MACHINE_PACE

    def measure(self, tree: Path) -> Measurement:
        """Measure the image (SPEC 4.4)."""
        found = measured(self.image(tree))
        return Measurement(found.pcr0, found.pcr1, found.pcr2)

    def launcher(self, tree: Path) -> tuple[str, ...]:
        """``casemate_devkit.vm``."""
        beside = PARENT_CID[self.name] != PARENT_CID["vm"]
        return (
            *("casemate_devkit.vm", "--eif", str(self.image(tree))),
            *("--tools", str(self.tools)),
            *(("--parent", str(self._parent(tree))) if beside else ()),
        )

    def image(self, tree: Path) -> Path:
        """The image of the tree as it is now; built unless it is there."""
        return self._built(tree, self.name)

    def _parent(self, tree: Path) -> Path:
        """The image of a parent instance, with the interpreter of the tree."""
        with tempfile.TemporaryDirectory(prefix="casemate-parent-") as folder:
            instance = Path(folder) / "tree"
            for part in tree.iterdir():
                if part.name not in _THE_ENCLAVES:
                    shutil.copytree(part, instance / part.name, symlinks=True)
            for name in _THE_ENCLAVES:
                (instance / name).mkdir()
            shutil.copy(tree / "app/init.py", instance / "app/init.py")
            shutil.copy(parent.__file__, instance / "app/boot.py")
            return self._built(instance, "vm")

    def _built(self, tree: Path, form: str) -> Path:
        profile = checkout() / _PROFILE
        contents = enclave_process.measure(tree, cmdline.PROCESS)
        recipe = [*Path(eif.__file__).parent.glob("*.py"), profile]
        inputs = b"".join(path.read_bytes() for path in sorted(recipe))
        name = hashlib.sha256(form.encode() + contents.pcr0 + inputs).hexdigest()[:16]
        path = self.images / f"{name}.eif"
        tools = Toolbox.open(self.tools)
        self.images.mkdir(parents=True, exist_ok=True)
        with (self.images / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # nobody boots what another is still writing
            if not path.exists():
                parts = Parts(tree=tree, kernel=tools.kernel, drivers=tools.drivers)
                build(parts, replace(Profile.load(profile), form=form), path)
                self._forget()
        return path

    def _forget(self) -> None:
        kept = sorted(self.images.glob("*.eif"), key=lambda image: image.stat().st_mtime)
        for old in kept[:-_KEPT]:
            old.unlink()
