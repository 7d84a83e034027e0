"""docs/THREATS.md names tests that exist, and every numbered attack of a test is in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
CATALOGUE = (TESTS.parent / "docs/THREATS.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([\w/]+\.py)::(\w+)`", CATALOGUE))
ENTRY = re.compile(r"^\| ([A-Z])(\d+)(?:-[A-Z](\d+))? \|", re.MULTILINE)


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def entries() -> set[str]:
    """Every number that a row of the catalogue stands for."""
    return {
        f"{group}{number}"
        for group, first, last in ENTRY.findall(CATALOGUE)
        for number in range(int(first), int(last or first) + 1)
    }


def test_every_named_test_exists() -> None:
    assert len(NAMED) > 100
    known = {file: functions(TESTS / file) for file, _ in NAMED if (TESTS / file).is_file()}
    missing = [f"{file}::{name}" for file, name in NAMED if name not in known.get(file, ())]
    assert not missing


def test_every_row_names_a_test_or_says_why_not() -> None:
    rows = [line for line in CATALOGUE.splitlines() if ENTRY.match(line)]
    assert len(rows) > 50
    assert not [row for row in rows if "::test_" not in row and "*open*" not in row]


def test_every_numbered_attack_of_a_security_test_is_in_the_catalogue() -> None:
    known = entries()
    for path in sorted((TESTS / "security").glob("test_*.py")):
        for name in functions(path):
            for number in re.findall(r"(?<=_)([hcmksoa]\d+)(?=_)", name.removeprefix("test")):
                assert number.upper() in known, f"{path.name}::{name}"


def test_no_number_was_lost() -> None:
    """Numbers are stable; H17 was never given."""
    most = {"H": 24, "C": 13, "M": 5, "K": 3, "S": 3, "O": 4, "A": 57}
    expected = {f"{group}{number}" for group, last in most.items() for number in range(1, last + 1)}
    assert entries() == expected - {"H17"}
