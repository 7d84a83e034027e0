"""Which tests run in every form of the enclave, and that docker/eif/README.md says which do not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
INTEGRATION = sorted((TESTS / "integration").rglob("test_*.py"))
GUIDE = (TESTS.parent / "docker/eif/README.md").read_text(encoding="utf-8")
STARTS = {"prepared", "running", "EnclaveProcess"}  # of tests/support/deployment.py; the launcher's
MODULES = {"tests.support.deployment", "casemate_devkit.enclave_process"}


def reasons(tree: ast.AST) -> list[str]:
    """What a file's marks ``process_form`` say."""
    return [
        ast.literal_eval(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "process_form"
    ]


def starts_enclaves(tree: ast.Module) -> bool:
    """Whether a file imports what starts an enclave."""
    return any(
        node.module in MODULES and STARTS & {name.name for name in node.names}
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    )


def takes_the_tree(tree: ast.Module) -> bool:
    """Whether a fixture or a test of a file asks for the staged tree, by which a form is chosen."""
    return any(
        "tree" in {argument.arg for argument in node.args.args}
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    )


@pytest.mark.parametrize("path", INTEGRATION, ids=lambda path: path.stem)
def test_what_runs_in_one_form_only_is_listed_with_its_reason(path: Path) -> None:
    for reason in reasons(ast.parse(path.read_text(encoding="utf-8"))):
        assert f"`{path.name}`" in GUIDE
        assert reason in GUIDE


@pytest.mark.parametrize("path", INTEGRATION, ids=lambda path: path.stem)
def test_whatever_starts_an_enclave_has_a_form(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if starts_enclaves(tree):
        assert takes_the_tree(tree) or reasons(tree)


def test_some_files_have_such_reasons_and_more_start_enclaves_in_any_form() -> None:
    files = [ast.parse(path.read_text(encoding="utf-8")) for path in INTEGRATION]
    bound = sum(bool(reasons(file)) for file in files)
    assert 0 < bound < sum(starts_enclaves(file) for file in files)
