"""Wheels do not depend on where, when and by whom they are built (THREATS O4)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = (".", "kms_client", "enclave", "host", "devkit")


def built(source: Path, target: Path, *, umask: int, zone: str) -> dict[str, str]:
    """Build every wheel from a copy of the sources; return their SHA-256."""
    command = [
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(target)),
        *(f"./{name}" for name in MANIFESTS),
    ]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1580601600", "TZ": zone}
    subprocess.run(command, check=True, cwd=source, umask=umask, env=environment)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.iterdir()}


def copied(target: Path, when: float) -> Path:
    """The sources at another place, with other times."""
    target.mkdir(parents=True)
    for name in ("casemate", *MANIFESTS[1:], "LICENSE", "README.md", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy(source, target / name)
    for path in target.rglob("*"):
        os.utime(path, (when, when))
    return target


@pytest.mark.slow
def test_o4_wheels_built_apart_are_the_same_to_the_byte(tmp_path: Path) -> None:
    first = copied(tmp_path / "here", 1_700_000_000)
    second = copied(tmp_path / "somewhere" / "else", 1_600_000_000)
    one = built(first, tmp_path / "one", umask=0o022, zone="UTC")
    two = built(second, tmp_path / "two", umask=0o077, zone="Asia/Tokyo")
    assert len(one) == len(MANIFESTS)
    assert one == two
