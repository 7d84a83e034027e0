"""What is in a model's memory file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.sealed_model import ModelContents


def read_all(contents: ModelContents) -> dict[str, bytes]:
    """Path -> content, in order."""
    return {path: bytes(view) for path, view in contents.views().items()}
