"""Copying into a staged tree so that two builds give the same bytes, names and modes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def copy_file(source: Path, target: Path) -> None:
    """Copy what ``source`` is or points at, with the only two modes a staged file may have."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def copy_tree(source: Path, target: Path, keep: Callable[[Path], bool]) -> None:
    """Copy a folder; ``keep`` is asked with each path relative to ``source``, folders first.

    Links are followed, since what they point at may lie outside; dangling ones are left out.
    """
    pending = [source]
    while pending:
        folder = pending.pop()
        for item in sorted(folder.iterdir()):
            relative = item.relative_to(source)
            if not item.exists() or not keep(relative):
                continue
            if item.is_dir():
                pending.append(item)
            else:
                copy_file(item, target / relative)


def prune(folder: Path, keep: Callable[[Path], bool]) -> None:
    """Remove what ``keep`` refuses, then folders left empty."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif not keep(path.relative_to(folder)):
            path.unlink()


def normalise(root: Path) -> None:
    """Give every folder 0755 and every file 0755 or 0644, whatever umask built them."""
    for folder, _, files in os.walk(root):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def link_tree(source: Path, target: Path) -> None:
    """Take over an unchanged part of an earlier build without copying its contents."""
    shutil.copytree(source, target, symlinks=True, copy_function=os.link, dirs_exist_ok=True)


def fingerprint(paths: list[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of each file: enough to see that sources on this machine changed."""
    found = []
    for path in paths:
        status = path.stat()
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return found
