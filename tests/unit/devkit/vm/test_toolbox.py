"""What a machine needs is there, or it is named: never a silent pass."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from casemate_devkit.errors import DevkitError
from casemate_devkit.forms import MachineForm
from casemate_devkit.vm import archive, machine, toolbox
from tests.support.attacker import eventually
from tests.support.small_tree import make_parts


def test_without_tools_nothing_is_built_or_booted(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    form = MachineForm(tools=tmp_path / "none", images=tmp_path / "images")
    with pytest.raises(DevkitError, match="make qemu"):
        form.measure(parts.tree)


def test_a_folder_of_another_layout_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "toolbox.json").write_text('{"layout": 0}')
    with pytest.raises(DevkitError, match="no tools"):
        toolbox.Toolbox.open(tmp_path)


def test_another_processor_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert toolbox.main([str(tmp_path / "tools")]) == 1
    assert "need Linux on x86-64" in capsys.readouterr().err
    assert not (tmp_path / "tools").exists()


def test_missing_programs_keys_and_archives_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DevkitError, match=r"lacks apt-get, apt-cache, dpkg-deb"):
        archive.find_mirror()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(archive, "_KEYRING", tmp_path / "keyring.gpg")
    with pytest.raises(DevkitError, match="debian-archive-keyring"):
        archive.find_mirror()
    (tmp_path / "keyring.gpg").touch()
    monkeypatch.setenv("DEBIAN_MIRROR", "http://mirror.example/debian")
    assert archive.find_mirror() == "http://mirror.example/debian"
    monkeypatch.delenv("DEBIAN_MIRROR")
    monkeypatch.setattr(archive, "_run", lambda *_, **__: "http://ubuntu.example/ubuntu/\n")
    with pytest.raises(DevkitError, match="DEBIAN_MIRROR"):
        archive.find_mirror()


def test_what_a_tool_says_when_it_fails_is_passed_on() -> None:
    with pytest.raises(DevkitError, match="no such thing"):
        archive._run(["sh", "-c", "echo no such thing >&2; exit 3"])
    with pytest.raises(DevkitError, match="nonexistent"):
        archive._run(["/nonexistent/program"])


@pytest.mark.parametrize(
    ("facts", "khz"),
    [
        ("model name\t: X CPU @ 2.60GHz\ncpu MHz\t\t: 2596.126\n", 2_596_126),
        ("model name\t: X CPU @ 2.60GHz\ncpu MHz\t\t: 800.000\n", 2_600_000),
        ("model name\t: Y 7763\ncpu MHz\t\t: 2445.437\n", 2_445_437),
    ],
    ids=["steady", "saving power", "no rate in the name"],
)
def test_the_rate_that_is_hinted_is_the_time_stamp_counters(
    monkeypatch: pytest.MonkeyPatch, facts: str, khz: int
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: facts)
    assert machine.processor_khz() == khz


OWNER = """
import os, subprocess, sys
from casemate_devkit.vm import child
child._PATH = sys.argv[1] + child._PATH
owner = {"OWNER": str(os.getpid())}
started = child.start(["sleep", "600"], output=subprocess.DEVNULL, environment=owner)
print(started.pid, flush=True)
"""
# In the place of the program that has the kernel end what it becomes with its owner.
LATE = """#!/bin/sh
while [ "$(cut -d " " -f 4 /proc/$$/stat)" = "$OWNER" ]; do sleep 0.02; done
exec /usr/bin/setpriv "$@"
"""


def _started(path: str = "") -> int:
    """The process id of a program of which the owner has ended; it looks in ``path`` first."""
    command = [sys.executable, "-c", OWNER, path]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def test_programs_end_with_their_owner() -> None:
    pid = _started()
    assert eventually(lambda: _state(pid) in {"", "Z"})


def test_programs_do_not_begin_when_their_owner_has_ended(tmp_path: Path) -> None:
    late = tmp_path / "setpriv"
    late.write_text(LATE)
    late.chmod(0o755)
    pid = _started(f"{tmp_path}:")
    assert eventually(lambda: _state(pid) in {"", "Z"})


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
