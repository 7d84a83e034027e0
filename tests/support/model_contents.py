"""What is in a model's memory file, and which memory files it takes."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.sealed_model import ModelContents


def read_all(contents: ModelContents) -> dict[str, bytes]:
    """Path -> content, in order."""
    return {path: bytes(view) for path, view in contents.views().items()}


class MemoryFiles:
    """The memory files that this process has and did not have when this was made.

    What earlier tests left may go at any time, and has other kinds of files too.
    """

    def __init__(self) -> None:
        self._before = _memory_files()

    def __len__(self) -> int:
        gc.collect()
        return len(self.bytes())

    def bytes(self) -> list[int]:
        """How much memory each takes."""
        now = _memory_files()
        return [now[name] for name in now.keys() - self._before.keys()]


def _memory_files() -> dict[int, int]:
    """Return the number of each, and the bytes of memory that it takes."""
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(descriptor.readlink()).startswith("/memfd:"):
                status = descriptor.stat()
                found[status.st_ino] = status.st_blocks * 512
    return found
