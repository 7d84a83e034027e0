"""Run a command as a user without any privilege, although the tests run as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

USER: Final = 12345
TOOLS: Final = ("mount", "setpriv", "sh", "unshare")
_OTHERS_PASS: Final = 0o001


def require_root() -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip(f"only root can become another user, with {', '.join(TOOLS)}")


def run_as_user(
    command: list[str | Path], home: Path, environment: dict[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` as ``USER``, who owns ``home`` and has no capability.

    What lies in directories that are closed to others, an interpreter in root's home say, is made
    to be reached within a mount namespace of the command's own.
    """
    script = ["set -e", "mount --make-rprivate /", *_uncovered(home)]
    privileges = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    become = ["setpriv", "--reuid", str(USER), "--regid", str(USER), *privileges]
    script.append(f'exec {" ".join(become)} "$@"')
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", "\n".join(script), "sh", *command],
        env={"PATH": os.defpath, "TMPDIR": str(home), "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def _uncovered(home: Path) -> list[str]:
    """Shell commands that lift the interpreter and this checkout out of closed directories."""
    lines = []
    for number, needed in enumerate((Path(sys.base_prefix), Path(__file__).parents[2])):
        closed = [p for p in reversed(needed.parents) if not p.stat().st_mode & _OTHERS_PASS]
        if closed:
            aside = home / f"aside-{number}"
            aside.mkdir()
            lines += [
                f"mount --bind '{needed}' '{aside}'",
                f"mount -t tmpfs -o mode=755 tmpfs '{closed[0]}'",
                f"mkdir -p '{needed}'",
                f"mount --bind '{aside}' '{needed}'",
            ]
    return lines
