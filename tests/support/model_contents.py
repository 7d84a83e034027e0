"""What is in a model's memory file, and which memory files there are."""

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


def memory_files() -> list[Path]:
    """Those that this process has; what earlier tests left has other kinds."""
    gc.collect()
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(descriptor.readlink()).startswith("/memfd:"):
                found.append(descriptor)
    return found
