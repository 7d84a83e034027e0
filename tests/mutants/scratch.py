"""A copy of code and tests in which mutants live; the work tree is never touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.mutants.mutant import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.mutants.mutant import Mutant

TIMEOUT_S = 500  # above the time that a test has, in which it waits for what a mutant keeps away
DISTRIBUTIONS = ("devkit", "enclave", "host", "kms_client")
COPIED = ("casemate", "tests", "docs", "examples", "pyproject.toml", *DISTRIBUTIONS)

OPTIONS = (
    *("-x", "-q", "-rfE", "--tb=no", "--no-header"),
    *("-p", "no:cacheprovider", "-p", "tests.mutants.profile", "-o", "timeout=300"),
)
# What it imports to start a deployment takes longer than most tests here.
WITHOUT_FIXTURES = "--noconftest"

_FAILED = re.compile(r"^FAILED (\S+?)(?:\[.*)?(?: - .*)?$", re.MULTILINE)
_PASSED, _TESTS_FAILED = 0, 1  # pytest's exit statuses; others say that tests could not run


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests said: killed by a failed test, survived, or neither."""

    killed: bool
    survived: bool
    by: str


def _conftest(tests: Sequence[str]) -> tuple[str, ...]:
    needed = any(test.startswith("tests/integration/") for test in tests)
    return () if needed else (WITHOUT_FIXTURES,)


class Scratch:
    """One copy; changed and restored for each mutant, used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=ignored)
            else:
                shutil.copy(source, folder / name)
        self._check_import()

    def _check_import(self) -> None:
        """Without this, every mutant would be judged by the work tree's own code."""
        code = "import casemate; print(casemate.__file__)"
        found = self._python("-c", code).stdout.strip()
        if found != str(self._folder / "casemate" / "__init__.py"):
            raise RuntimeError(f"the copy is not what is imported: {found}")

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # No bytecode: a mutant of the same size and second would be taken for its predecessor.
        path = os.pathsep.join(str(self._folder / name) for name in ("", *DISTRIBUTIONS))
        environment = os.environ | {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": path,
            "ORT_DISABLE_TELEMETRY": "1",  # as the conftest says that is not read
        }
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self._folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )

    def run(self, tests: Sequence[str]) -> Verdict:
        """Run test files until one test fails."""
        try:
            done = self._python("-m", "pytest", *OPTIONS, *_conftest(tests), *tests)
        except subprocess.TimeoutExpired:
            return Verdict(killed=False, survived=False, by="timed out")
        failed = _FAILED.search(done.stdout)
        if done.returncode == _TESTS_FAILED and failed:
            return Verdict(killed=True, survived=False, by=failed[1])
        survived = done.returncode == _PASSED
        said = (done.stdout + done.stderr).strip().splitlines()
        by = "" if survived else " / ".join(said[-2:])
        return Verdict(killed=False, survived=survived, by=by)

    def judge(self, mutant: Mutant) -> Verdict:
        """Apply ``mutant``, run its tests, restore the file."""
        path = self._folder / mutant.path
        source = path.read_text()
        path.write_text(mutant.applied(source))
        try:
            return self.run(mutant.tests)
        finally:
            path.write_text(source)
