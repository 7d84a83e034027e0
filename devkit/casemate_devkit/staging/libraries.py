"""Shared libraries that the interpreter and extension modules need, and the loader."""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate_devkit.errors import DevkitError
from casemate_devkit.staging.files import copy_file

if TYPE_CHECKING:
    from collections.abc import Iterable

_ELF: Final = b"\x7fELF"
_PT_INTERP: Final = 3
_NEEDED = re.compile(r"^\s+(\S+) => (\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_ABSENT = re.compile(r"^\s+(\S+) => not found$", re.MULTILINE)
_C_LIBRARY: Final = "libc.so.6"
# glibc opens it by name when a thread is cancelled or a stack is unwound; nothing lists it.
_OPENED_BY_NAME: Final = "libgcc_s.so.1"


@dataclass(frozen=True, slots=True)
class Closure:
    """The loader, and each library by the name under which it is asked for."""

    loader: Path
    libraries: dict[str, Path]

    @property
    def directory(self) -> Path:
        """Where the loader looks by itself: the folder of the C library that it belongs to."""
        return self.libraries[_C_LIBRARY].parent

    def copy_to(self, root: Path) -> None:
        """Place all of it below ``root``."""
        copy_file(self.loader.resolve(), root / self.loader.relative_to("/"))
        (root / self.loader.relative_to("/")).chmod(0o755)
        folder = root / self.directory.relative_to("/")
        for name, path in sorted(self.libraries.items()):
            copy_file(path.resolve(), folder / name)


def closure(interpreter: Path, modules: Iterable[Path], inside: Path) -> Closure:
    """Find every library that ``interpreter`` and ``modules`` need, at any depth.

    Libraries below ``inside`` are in the tree already: wheels bring theirs along. Raises
    DevkitError for a library that this machine does not have, and without glibc.
    """
    binaries = [interpreter, *(path for path in modules if is_elf(path))]
    found: dict[str, Path] = {}
    listing = _ldd(binaries)
    if missing := sorted(set(_ABSENT.findall(listing)) - {path.name for path in binaries}):
        raise DevkitError(
            f"this machine lacks shared libraries of the enclave: {', '.join(missing)}"
        )
    for name, path in _NEEDED.findall(listing):
        if not Path(path).resolve().is_relative_to(inside.resolve()):
            found[Path(name).name] = Path(path)
    if _C_LIBRARY not in found:
        raise DevkitError("the staged tree needs glibc, which this interpreter does not use")
    by_name = found[_C_LIBRARY].with_name(_OPENED_BY_NAME)
    if by_name.exists():
        found.setdefault(_OPENED_BY_NAME, by_name)
    return Closure(loader_of(interpreter), found)


def is_elf(path: Path) -> bool:
    """Whether it is a binary."""
    with path.open("rb") as file:
        return file.read(4) == _ELF


def loader_of(binary: Path) -> Path:
    """The path in the program's PT_INTERP header; the kernel looks nowhere else."""
    data = binary.read_bytes()
    if data[:6] != _ELF + b"\x02\x01":
        raise DevkitError(f"{binary} is not a 64-bit little-endian ELF program")
    table, size, count = _u64(data, 32), *struct.unpack_from("<HH", data, 54)
    for at in range(table, table + size * count, size):
        if struct.unpack_from("<I", data, at)[0] == _PT_INTERP:
            start, length = _u64(data, at + 8), _u64(data, at + 32)
            return Path(data[start : start + length].rstrip(b"\x00").decode())
    raise DevkitError(f"{binary} is linked statically, which a staged tree cannot run")


def _u64(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<Q", data, at)[0])


def _ldd(binaries: list[Path]) -> str:
    try:
        ran = subprocess.run(
            ["ldd", *map(str, binaries)],  # noqa: S607 - where it lies differs between distributions
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise DevkitError(
            "ldd is missing: the staged tree can be built on Linux with glibc only"
        ) from None
    return ran.stdout
