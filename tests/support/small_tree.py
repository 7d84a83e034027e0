"""A staged tree in miniature, with kernel and drivers, for images that never boot."""

from __future__ import annotations

import lzma
import os
import sys
from typing import TYPE_CHECKING

from casemate_devkit.eif.build import Parts
from casemate_devkit.eif.profile import Profile

if TYPE_CHECKING:
    from pathlib import Path

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
MODULES = ("virtio_mmio", "nsm")
PROFILE = Profile("vm", "x86_64", "console=ttyS0 panic=-1", MODULES)
FILES = {
    f"usr/bin/{VERSION}": b"\x7fELF interpreter",
    f"usr/lib/{VERSION}/os.py": b"name = 'posix'\n",
    "lib64/ld-linux-x86-64.so.2": b"\x7fELF loader",
    "packages/numpy/__init__.py": b"version = '2'\n",
    "packages/numpy/data.json": b"{}",
    "packages/numpy/template.py": b"def {{name}}():\n",
    "app/boot.py": b"import os\n",
    "app/init.py": b"import os\n",
    "app/casemate/wire.py": b"SIZES = {'a', 'b', 'c'}\nKNOWN = 'd' in {'d', 'e', 'f'}\n",
}
PROGRAMS = (f"usr/bin/{VERSION}", "lib64/ld-linux-x86-64.so.2")


def make_parts(folder: Path, *, umask: int = 0o022) -> Parts:
    """Write everything below ``folder``, as a builder with that umask would."""
    before = os.umask(umask)
    try:
        tree, drivers = folder / "tree", folder / "drivers/deep"
        for name, content in FILES.items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if name in PROGRAMS:
                path.chmod(path.stat().st_mode | 0o100)
        (tree / "usr/bin/python3").symlink_to(VERSION)
        for point in ("dev", "proc", "sys", "run"):
            (tree / point).mkdir()
        drivers.mkdir(parents=True)
        (drivers / "virtio_mmio.ko.xz").write_bytes(lzma.compress(b"driver one"))
        (drivers / "nsm.ko").write_bytes(b"driver two")
        (folder / "kernel").write_bytes(b"kernel" * 100)
    finally:
        os.umask(before)
    return Parts(tree=tree, kernel=folder / "kernel", drivers=folder / "drivers")
