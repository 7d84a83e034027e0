"""Where time runs out (`--within`), what starts processes is left out by name; the rest is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("within", "summary"), [("0", r"\n1 passed, 1 skipped in "), ("600", r"\n2 passed in ")]
)
def test_what_comes_too_late_is_skipped_by_name_if_it_starts_processes(
    tmp_path: Path, within: str, summary: str
) -> None:
    tried = tmp_path / "test_tried.py"
    tried.write_text(
        "import pytest\n"
        "order = []\n"
        "@pytest.fixture\n"
        "def enclave(): assert order.append('started') is None\n"
        "@pytest.mark.integration\n"
        "def test_process(enclave): assert order == ['alone', 'started']\n"
        "def test_alone(): order.append('alone')\n"
    )
    settings = ("-q", "-p", "no:cacheprovider", "-p", "tests.conftest", "-c", "pyproject.toml")
    command = (sys.executable, "-m", "pytest", *settings, f"--within={within}", tried)
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.search(summary, run.stdout), run.stdout + run.stderr
    assert ("out of time: test_tried.py" in run.stdout) == (within == "0")
    assert run.returncode == 0
