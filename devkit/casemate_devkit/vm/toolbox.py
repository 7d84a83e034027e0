"""What a virtual machine needs and no wheel brings: ``python -m casemate_devkit.vm.toolbox DIR``.

QEMU 11 (the first with ``vhost-user-test-device``), a kernel with the ``nsm`` driver, and
vhost-device-vsock, from the Debian archive that this machine's apt is configured for. Nothing is
installed and root is not needed: packages are unpacked in DIR, and QEMU runs with the loader and
libraries that come with it. Done once; the folder says what it holds.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from casemate_devkit.errors import DevkitError
from casemate_devkit.vm.archive import Archive, find_mirror

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STAMP: Final = "toolbox.json"
_LAYOUT: Final = 1  # raise it when what is unpacked, or where, changes
_TRY_S: Final = 30.0
_DEVICES: Final = ("vhost-user-test-device", "vhost-user-vsock-device")

_STABLE: Final = ("trixie", "trixie-backports")
_LATER: Final = ("forky", "sid")
_EMULATOR: Final = ("qemu-system-x86", "trixie-backports")
_KERNEL: Final = ("linux-image-cloud-amd64", "linux-image-")  # names the newest build's package
_VSOCK: Final = "vhost-device-vsock"


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The unpacked tools below ``root``."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> Self:
        """Use what ``prepare`` unpacked; raises DevkitError if it is not there."""
        if not _is_current(root):
            raise DevkitError(
                f"no tools for virtual machines in {root}: "
                f"make qemu, or python -m casemate_devkit.vm.toolbox {root}"
            )
        return cls(root.resolve())

    @property
    def kernel(self) -> Path:
        """The kernel's image."""
        return next((self.root / "kernel/boot").glob("vmlinuz-*"))

    @property
    def drivers(self) -> Path:
        """The folder below which the kernel's drivers lie."""
        return self.root / "kernel"

    @property
    def vsock(self) -> Path:
        """The program that serves vsock to virtual machines; it needs the C library alone."""
        return self.root / "vsock/usr/bin/vhost-device-vsock"

    @property
    def emulator(self) -> tuple[str, ...]:
        """The command that runs QEMU, up to its own options."""
        base = self.root / "emulator/usr"
        return (
            *(f"{base}/lib64/ld-linux-x86-64.so.2", "--library-path", f"{self._libraries}"),
            *(f"{base}/bin/qemu-system-x86_64", "-L", f"{base}/share/qemu"),
            *("-L", f"{base}/share/seabios"),
        )

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that QEMU needs to find its own parts."""
        return {"QEMU_MODULE_DIR": f"{self._libraries}/qemu"}

    @property
    def _libraries(self) -> Path:
        return self.root / "emulator/usr/lib/x86_64-linux-gnu"

    def check(self) -> None:
        """Start each program once; raises DevkitError if one does not do."""
        devices = self._said(*self.emulator, "-device", "help")
        missing = [name for name in _DEVICES if f'"{name}"' not in devices]
        if missing:
            raise DevkitError(f"this QEMU has no {', '.join(missing)}")
        self._said(str(self.vsock), "--version")

    def _said(self, *command: str) -> str:
        try:
            ran = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=True,
                timeout=_TRY_S,
                env=dict(self.environment),
            )
        except (OSError, subprocess.SubprocessError) as error:
            detail = (getattr(error, "stderr", "") or "").strip()[-500:]
            raise DevkitError(f"{command[0]} does not run here: {error} {detail}") from None
        return ran.stdout


def prepare(root: Path) -> bool:
    """Make ``root`` a toolbox unless it is one; whether it was made. Raises DevkitError."""
    if _is_current(root):
        return False
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise DevkitError(f"virtual machines need Linux on x86-64; this is {platform.platform()}")
    root = root.absolute()
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as scratch:
        new = Path(scratch) / "new"
        packages = _fill(new, Path(scratch), find_mirror())
        Toolbox(new).check()
        stamp = {"layout": _LAYOUT, "packages": packages}
        (new / _STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
        shutil.rmtree(root, ignore_errors=True)
        new.rename(root)
    return True


def _fill(new: Path, scratch: Path, mirror: str) -> list[str]:
    """Download and unpack; return the names of the package files, which hold their versions."""
    stable = Archive(scratch / "stable", mirror, _STABLE)
    later = Archive(scratch / "later", mirror, _LATER)
    found = {
        "emulator": stable.closure(*_EMULATOR),
        "kernel": [stable.download(stable.depends(*_KERNEL))],
        "vsock": [later.download(_VSOCK)],
    }
    for folder, files in found.items():
        for file in files:
            stable.unpack(file, new / folder)
    return sorted(file.name for files in found.values() for file in files)


def _is_current(root: Path) -> bool:
    try:
        stamp = json.loads((root / _STAMP).read_text())
    except (OSError, ValueError):
        return False
    return bool(stamp["layout"] == _LAYOUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m casemate_devkit.vm.toolbox")
    parser.add_argument("root", type=Path, metavar="DIR", help="made if it is not there")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        made = prepare(options.root)
    except DevkitError as error:
        print(f"virtual machine tools: {error}", file=sys.stderr)
        return 1
    took = f"made in {time.monotonic() - started:.0f} s" if made else "there already"
    print(f"tools for virtual machines: {options.root} ({took})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
