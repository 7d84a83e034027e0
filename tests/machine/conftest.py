"""Tests of the machine itself: collected with `--form vm` only, which `make qemu` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where no machine is asked for they are not skipped: they are another run's."""
    return None if config.getoption("--form") == "vm" else True
