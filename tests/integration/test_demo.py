"""The demonstration fails loudly, and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate_devkit.demo import __main__ as demo
from tests.support.deployment import EXAMPLE

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.integration,
    pytest.mark.process_form("the demonstration, a program of its own, runs a process"),
]


def fewer_right(folder: Path) -> None:
    origin = folder / "ORIGIN.json"
    origin.write_text(origin.read_text().replace('"correct": 168', '"correct": 167'))


def other_rows(folder: Path) -> None:
    rows = folder / "heldout.csv"
    header, first, *rest = rows.read_text().splitlines()
    flipped = first[:-1] + ("0" if first.endswith("1") else "1")
    rows.write_text("\n".join([header, flipped, *rest]) + "\n")


@pytest.mark.parametrize("damage", [fewer_right, other_rows])
def test_a_step_that_deviates_ends_it_with_exit_code_1(
    short_path: Path, tree: Path, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = short_path / "data"
    shutil.copytree(EXAMPLE, folder)
    damage(folder)
    base = short_path / "d"
    base.mkdir()
    assert demo.run(base, tree, folder, keep=False) == 1
    printed = capfd.readouterr()
    assert "rows right" in printed.err
    assert "Attack" not in printed.out
    assert not processes_of(base)


def processes_of(base: Path) -> list[str]:
    """Command lines of running processes that name ``base``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\x00", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended
        if str(base) in line:
            found.append(line)
    return found
