"""The runtime part: interpreter, standard library, shared libraries, loader, mount points."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Final

from casemate_devkit import cmdline
from casemate_devkit.errors import DevkitError
from casemate_devkit.namespaces import MOUNT_POINTS
from casemate_devkit.staging.files import copy_file, copy_tree
from casemate_devkit.staging.libraries import closure

_VERSION: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
_MACHINES: Final = ("x86_64", "aarch64")

# Left out of the standard library, top-level names.
_LEFT_OUT: Final = {
    "__pycache__": "bytecode is not measured source; the enclave neither reads nor writes any",
    "curses": "terminals",
    "dbm": "databases, with their C libraries",
    "distutils": "builds packages",
    "ensurepip": "installs packages",
    "idlelib": "an editor",
    "lib2to3": "converts Python 2",
    "pydoc_data": "documentation",
    "site-packages": "other software of this machine",
    "dist-packages": "other software of this machine",
    "sitecustomize.py": "the distribution's own hook; never imported under -S",
    "sqlite3": "databases, with their C libraries",
    "test": "the interpreter's own tests",
    "tkinter": "windows",
    "turtledemo": "windows",
    "turtle.py": "windows",
    "venv": "installs packages",
}
# The library of CUDA's driver fits one version of the kernel's part alone, and is in no wheel.
_GPU_DRIVER: Final = "libcuda.so.1"
_GPU_DRIVER_OPENS: Final = ("libnvidia-ptxjitcompiler.so.1", "libnvidia-nvvm.so.4")
_LEFT_OUT_SUFFIXES: Final = (".pyc", ".a", ".o", ".exe", ".pickle")
_LEFT_OUT_FOLDERS: Final = frozenset({"__pycache__", "test", "tests", "idle_test"})
# Extension modules of what is left out above, of terminals, and of the interpreter's own tests.
_LEFT_OUT_MODULES: Final = (
    *("_curses", "_dbm", "_gdbm", "_sqlite3", "_tkinter", "_test", "_xx", "xx"),
    *("nis", "ossaudiodev", "readline", "_ctypes_test"),
)


def check_platform() -> None:
    """Raise DevkitError where no staged tree can be built."""
    if (
        sys.platform != "linux"
        or platform.libc_ver()[0] != "glibc"
        or platform.machine() not in _MACHINES
    ):
        raise DevkitError(
            "the enclave's tree can be staged on Linux with glibc, x86_64 or aarch64, only; "
            f"this is {platform.platform()}; casemate doctor says what a machine needs"
        )


def interpreter() -> Path:
    """The real interpreter behind this one, outside of any virtual environment."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return Path(base).resolve()


def standard_library() -> Path:
    """Its standard library."""
    return Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))


def identity() -> list[str]:
    """What the runtime part is made of, in a form that changes when it does."""
    program, library = interpreter(), standard_library()
    marks = [program, library / "os.py", library / "lib-dynload"]
    times = [f"{mark} {mark.stat().st_mtime_ns}" for mark in marks if mark.exists()]
    return [sys.version, *times, platform.machine(), " ".join(platform.libc_ver())]


def stage(root: Path) -> None:
    """Build the runtime part below ``root``, whose ``packages`` are complete already."""
    program = root / "usr" / "bin" / _VERSION
    copy_file(interpreter(), program)
    # A link, so that the measured command line names no version.
    (root / cmdline.INTERPRETER[1:]).symlink_to(_VERSION)
    library = root / "usr" / sys.platlibdir / _VERSION
    copy_tree(standard_library(), library, belongs)
    modules = [*_shared_objects(library), *_shared_objects(root / "packages")]
    found = closure(interpreter(), modules, inside=root)
    _add_driver(found.libraries)
    found.copy_to(root)
    make_mount_points(root)


def _add_driver(libraries: dict[str, Path]) -> None:
    """Where a GPU's driver is among them, add what it opens by name."""
    driver = libraries.get(_GPU_DRIVER)
    for name in _GPU_DRIVER_OPENS:
        if driver is not None and (path := driver.with_name(name)).exists():
            libraries.setdefault(name, path)


def make_mount_points(root: Path) -> None:
    """Make the empty files and folders that the launcher mounts over."""
    for point in MOUNT_POINTS:
        path = root / point
        if point.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def belongs(path: Path) -> bool:
    """Whether a file or folder of the standard library is staged."""
    top, name = path.parts[0], path.name
    if top in _LEFT_OUT or top.startswith("config-") or name in _LEFT_OUT_FOLDERS:
        return False
    if top == "lib-dynload" and name.startswith(_LEFT_OUT_MODULES):
        return False
    return not name.endswith(_LEFT_OUT_SUFFIXES)


def _shared_objects(folder: Path) -> list[Path]:
    return sorted(
        Path(where, name) for where, _, names in os.walk(folder) for name in names if ".so" in name
    )
