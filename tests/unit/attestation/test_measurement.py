"""Measurement of a staged tree (SPEC 4) against a second implementation, and against changes."""

from __future__ import annotations

import hashlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from casemate.attestation import Measurement, measure_tree
from casemate.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CMDLINE = ("python", "-I", "/app/boot.py")
ALL = {"pcr0", "pcr1", "pcr2"}
IMAGE = {"pcr0", "pcr1"}  # runtime, command line and packages
APPLICATION = {"pcr0", "pcr2"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("bin", "lib/deep", "packages/numpy", "app/casemate", "proc", "packages.d"):
        (root / name).mkdir(parents=True)
    (root / "bin/python").write_bytes(b"\x7fELF")
    (root / "bin/python").chmod(0o755)
    (root / "bin/python3").symlink_to("python")
    (root / "lib/deep/x.so").write_bytes(b"so" * 700_000)
    (root / "lib-a").write_bytes(b"sorts between lib and lib/")
    (root / "packages/numpy/core.py").write_text("core")
    (root / "packages.d/x").write_text("")
    (root / "app/boot.py").write_text("boot")
    (root / "app/casemate/é.py").write_text("")
    return root


def lp(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def sha(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def expected(root: Path, cmdline: tuple[str, ...]) -> Measurement:
    parts = dict.fromkeys(("runtime", "packages", "app"), b"casemate/v1 manifest\x00")
    for path in sorted(root.rglob("*"), key=lambda found: os.fsencode(found.relative_to(root))):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            kind, run, value = 1, 0, os.fsencode(os.readlink(path))  # noqa: PTH115 - as above
        elif path.is_dir():
            kind, run, value = 2, 0, b""
        else:
            kind, run, value = 0, bool(path.stat().st_mode & 0o100), sha(path.read_bytes())
        part = next((p for p in ("packages", "app") if name.startswith(f"{p}/")), "runtime")
        parts[part] += lp(name.encode()) + bytes([kind, run]) + lp(value)
    runtime, packages, app = parts["runtime"], parts["packages"], parts["app"]
    command = b"\x00".join(argument.encode() for argument in cmdline)
    first = lp(runtime) + lp(command) + lp(packages)
    return Measurement(*(sha(bytes(48) + sha(e)) for e in (first + lp(app), first, lp(app))))


def test_agrees_with_the_spec(tree: Path) -> None:
    assert measure_tree(tree, CMDLINE) == expected(tree, CMDLINE)


def test_the_bare_tree(tmp_path: Path) -> None:
    assert measure_tree(tmp_path, ()) == expected(tmp_path, ())


def differing(one: Measurement, other: Measurement) -> set[str]:
    return {name for name in ALL if getattr(one, name) != getattr(other, name)}


def move_into_app(root: Path) -> None:
    (root / "packages/numpy/core.py").rename(root / "app/core.py")


def add_bytecode(root: Path) -> None:
    (root / "app/__pycache__").mkdir()
    (root / "app/__pycache__/boot.cpython-311.pyc").touch()


def swap_link(root: Path) -> None:
    (root / "bin/python3").unlink()
    os.symlink("./python", root / "bin/python3")  # noqa: PTH211 - pathlib would drop the dot


def link_to_copy(root: Path) -> None:
    (root / "bin/python3").unlink()
    (root / "bin/python3").write_bytes((root / "bin/python").read_bytes())


def link_the_application(root: Path) -> None:
    (root / "app").rename(root / "real")
    (root / "app").symlink_to("real")


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "application: byte": (lambda r: (r / "app/boot.py").write_text("Boot"), APPLICATION),
    "application: file added": (lambda r: (r / "app/x").touch(), APPLICATION),
    "application: file removed": (lambda r: (r / "app/boot.py").unlink(), APPLICATION),
    "application: renamed": (lambda r: (r / "app/boot.py").rename(r / "app/b.py"), APPLICATION),
    "application: executable": (lambda r: (r / "app/boot.py").chmod(0o744), APPLICATION),
    "application: folder added": (lambda r: (r / "app/empty").mkdir(), APPLICATION),
    "application: bytecode added": (add_bytecode, APPLICATION),
    "application: linked": (link_the_application, ALL),
    "packages: byte": (lambda r: (r / "packages/numpy/core.py").write_text("c"), IMAGE),
    "packages: file added": (lambda r: (r / "packages/x").touch(), IMAGE),
    "packages to application": (move_into_app, ALL),
    "runtime: byte": (lambda r: (r / "bin/python").write_bytes(b"\x7fELg"), IMAGE),
    "runtime: not executable": (lambda r: (r / "bin/python").chmod(0o655), IMAGE),
    "runtime: link elsewhere": (swap_link, IMAGE),
    "runtime: link to copy": (link_to_copy, IMAGE),
    "runtime: folder removed": (lambda r: (r / "proc").rmdir(), IMAGE),
    "runtime: file beside packages": (lambda r: (r / "packages.d/x").write_text("x"), IMAGE),
    "runtime: last byte of a large file": (
        lambda r: (r / "lib/deep/x.so").write_bytes(b"so" * 699_999 + b"sp"),
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_shows_in_its_registers(tree: Path, name: str) -> None:
    change, registers = CHANGES[name]
    before = measure_tree(tree, CMDLINE)
    change(tree)
    after = measure_tree(tree, CMDLINE)
    assert differing(before, after) == registers
    assert after == expected(tree, CMDLINE)


@pytest.mark.parametrize(
    "cmdline",
    [(), CMDLINE[:-1], (*CMDLINE, "--debug"), (*CMDLINE, ""), ("python -I", "/app/boot.py")],
)
def test_the_command_line_is_measured(tree: Path, cmdline: tuple[str, ...]) -> None:
    before = measure_tree(tree, CMDLINE)
    assert differing(before, measure_tree(tree, cmdline)) == IMAGE


def test_what_is_not_measured(tree: Path) -> None:
    before = measure_tree(tree, CMDLINE)
    os.utime(tree / "app/boot.py", (1, 1))
    (tree / "bin/python").chmod(0o700)
    assert measure_tree(tree, CMDLINE) == before


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def not_utf8(path: Path) -> None:
    (path.parent / os.fsdecode(b"pipe\xff")).touch()


@pytest.mark.parametrize("make", [os.mkfifo, bind, not_utf8])
def test_entries_that_cannot_be_measured(tree: Path, make: Callable[[Path], None]) -> None:
    make(tree / "app/pipe")
    with pytest.raises(EvidenceError, match=r"EVIDENCE_MEASUREMENTS: 'app/pipe"):
        measure_tree(tree, CMDLINE)


def test_what_else_cannot_be_measured(tree: Path) -> None:
    with pytest.raises(EvidenceError, match="EVIDENCE_MEASUREMENTS"):
        measure_tree(tree / "absent", CMDLINE)
    for argument in ("a\x00b", "\udcff"):
        with pytest.raises(EvidenceError, match="EVIDENCE_MEASUREMENTS"):
            measure_tree(tree, (argument,))
