"""The staged tree against enclave/TCB.md (THREATS.md: O2, O3)."""

from __future__ import annotations

import importlib.metadata
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate_devkit.staging.libraries import is_elf

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
TCB = (ROOT / "enclave" / "TCB.md").read_text(encoding="utf-8")
MB = 1_000_000
ABOUT = 0.1  # other packages and processors: a tenth more or less
# Another version may have more. A distribution's Python has less: its library is stripped.
MORE_RUNTIME = ABOUT if sys.version_info[:2] == (3, 11) else 0.25
LESS_RUNTIME = 0.5
ROUNDED = 0.06
PT_INTERP = 3

# Programs that could run another, install one or make one, wherever they might lie.
TOOLS = (
    *("sh", "bash", "dash", "ash", "zsh", "busybox", "env", "perl", "awk", "sed", "find"),
    *("gcc", "cc", "c99", "clang", "ld", "as", "ar", "make", "cmake", "rustc", "cargo"),
    *("pip", "pip3", "uv", "conda", "easy_install", "apt", "apt-get", "dpkg", "rpm", "yum"),
    *("curl", "wget", "nc", "ssh", "gdb", "strace", "ldd", "mount", "su", "sudo"),
)
MODULES = (
    *("pip", "ensurepip", "setuptools", "pkg_resources", "wheel", "distutils", "venv", "uv"),
    *("lib2to3", "idlelib", "tkinter", "test", "sqlite3"),
)


def sizes() -> dict[str, float]:
    """What TCB.md says, in MB, by name."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([0-9.]+) \|", TCB, re.MULTILINE)
    return {name: float(size) for name, size in rows}


def files(*roots: Path) -> Iterator[Path]:
    for root in roots:
        if root.is_file():
            yield root
        for folder, _, names in os.walk(root):
            yield from (Path(folder, name) for name in names)


def megabytes(*roots: Path) -> float:
    return sum(path.lstat().st_size for path in files(*roots) if not path.is_symlink()) / MB


def entries(package: str) -> set[str]:
    """What a package puts into the folder of packages, by the record of its installation."""
    record = importlib.metadata.files(package) or []
    return {path.parts[0] for path in record} - {"..", "__pycache__"}


def locked() -> list[str]:
    lock = (ROOT / "requirements" / "enclave.txt").read_text(encoding="utf-8")
    return re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE)


@pytest.mark.parametrize("package", locked())
def test_o3_each_package_has_the_size_that_is_stated(package: str, tree: Path) -> None:
    found = megabytes(*(tree / "packages" / entry for entry in entries(package)))
    assert found == pytest.approx(sizes()[package], rel=ABOUT, abs=ROUNDED)


def test_o3_each_part_has_the_size_that_is_stated(tree: Path) -> None:
    stated = sizes()
    for part, folder in (("packages", "packages"), ("application", "app")):
        found = megabytes(tree / folder)
        assert found == pytest.approx(stated[part], rel=ABOUT, abs=ROUNDED), part
    runtime = megabytes(*(path for path in tree.iterdir() if path.name not in {"packages", "app"}))
    assert 1 - LESS_RUNTIME <= runtime / stated["runtime"] <= 1 + MORE_RUNTIME


def test_o3_nothing_is_staged_that_no_listed_package_brings(tree: Path) -> None:
    known = set().union(*map(entries, locked()))
    assert {path.name for path in (tree / "packages").iterdir()} <= known


def test_o2_no_shell_no_installer_no_compiler(tree: Path) -> None:
    for path in files(tree):
        assert path.name not in TOOLS, path
    libraries = [tree / "packages", *tree.glob("usr/lib*/python3.*")]
    for folder in libraries:
        for path in folder.iterdir():
            assert path.name.split(".")[0].split("-")[0] not in MODULES, path
    assert not (tree / "etc").exists()


def is_program(path: Path) -> bool:
    """Whether the kernel would start it by itself: it names its loader."""
    data = path.read_bytes()
    table, count = int.from_bytes(data[32:40], "little"), int.from_bytes(data[56:58], "little")
    headers = (data[table + 56 * number :][:4] for number in range(count))
    return PT_INTERP in {int.from_bytes(kind, "little") for kind in headers}


def test_o2_the_interpreter_is_the_only_program(tree: Path) -> None:
    binaries = {path for path in files(tree) if not path.is_symlink() and is_elf(path)}
    programs = {path.name for path in binaries if is_program(path)}
    libc = {"libc.so.6", "libpthread.so.0"}  # they print their version when started
    (interpreter,) = programs - libc
    assert interpreter == str((tree / "usr/bin/python3").readlink())
    scripts = [path for path in files(tree) if path.parent.name in {"bin", "sbin"}]
    assert {path.name for path in scripts} == {"python3", interpreter}


def test_o2_no_file_gains_privileges_hooks_the_start_or_hides_code(tree: Path) -> None:
    for path in files(tree):
        status = path.lstat()
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID), path
        assert path.suffix not in {".pth", ".pyc", ".pyo", ".egg", ".whl"}, path
        assert path.name not in {"sitecustomize.py", "usercustomize.py", "pyvenv.cfg"}, path
        assert path.name != "ld.so.preload", path
        assert stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode), path
        assert "security.capability" not in os.listxattr(path, follow_symlinks=False), path
    assert not list(tree.rglob("__pycache__"))


def test_o3_of_botocores_services_only_kms_is_staged(tree: Path) -> None:
    services = [path.name for path in (tree / "packages/botocore/data").iterdir() if path.is_dir()]
    assert services == ["kms"]
