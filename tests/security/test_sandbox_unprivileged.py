"""THREATS S1 and S2 where a user without privileges starts the enclave.

That user owns the enclave's user namespace, and so has every capability over what runs in it and
is dumpable, or belongs to it: what root's enclave has for nothing must be brought about.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.as_user import USER, require_root, run_as_user

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tree: Path) -> Iterator[Path]:
    """A directory of the user's own, with a staged tree in it."""
    require_root()
    with tempfile.TemporaryDirectory(prefix="cm-") as folder:
        base = Path(folder)
        shutil.copytree(tree, base / "stage" / "tree", symlinks=True)
        (base / "tmp").mkdir()
        subprocess.run(["chown", "-R", f"{USER}:{USER}", base], check=True)
        yield base


def test_the_sandbox_holds_for_a_user_too(home: Path) -> None:
    pytest_options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    ran = run_as_user(
        [sys.executable, "-m", "pytest", *pytest_options, ROOT / "tests/security/test_sandbox.py"],
        home / "tmp",
        {"CASEMATE_TREE": str(home / "stage/tree"), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"},
        timeout_s=280,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert " passed" in ran.stdout
