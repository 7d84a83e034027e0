"""`casemate doctor` on this machine, and on machines that cannot isolate an enclave."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from casemate.client import doctor
from tests.support.cli import run, run_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration
TOOLS = ("unshare", "setpriv")
WALLS = [
    "Landlock",
    "seccomp filters",
    "user namespaces",
    "mount, pid, net, ipc, uts namespaces",
    "mounts in a namespace",
    "pivot_root",
]


def by_name(report: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {check["name"]: check for check in report["checks"]}


def test_what_runs_the_tests_can_isolate_an_enclave() -> None:
    report = run_json("doctor", "--json")
    checks = by_name(report)
    assert report["able"]
    assert all(checks[name]["ok"] for name in WALLS)
    assert checks["Landlock"]["found"].startswith("version ")
    assert not any(check["mend"] for check in report["checks"] if check["ok"])
    assert all(check["mend"] for check in report["checks"] if not check["ok"])
    assert doctor.obstacles() == []


def test_the_table_is_for_people() -> None:
    shown = run("doctor").stdout
    assert "✓ pivot_root" in shown
    assert shown.rstrip().endswith("An enclave can run here as an isolated process.")


def test_a_mac_is_told_what_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    shown = run("doctor", code=1).stdout
    assert "✗ system" in shown
    assert "Linux with glibc" in shown
    assert "--unsafe-no-namespaces" in shown


@pytest.mark.parametrize("setting", [name for name, _ in doctor._FORBIDDING])
def test_every_setting_that_forbids_is_named(
    setting: str, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = dict(doctor._FORBIDDING.keys())
    monkeypatch.setattr(doctor, "_SETTINGS", short_path)
    assert doctor._mends() == []
    path = short_path / setting
    path.parent.mkdir()
    path.write_text(f"{values[setting]}\n")
    assert doctor._mends() == [doctor._FORBIDDING[setting, values[setting]]]


@pytest.mark.parametrize("step", doctor._STEPS)
def test_each_step_that_is_refused_is_an_obstacle_with_a_mend(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: dict[str, Any] = dict.fromkeys(doctor._STEPS, "works")
    monkeypatch.setattr(
        doctor, "_tried", lambda: {**tried, step: {"refused": "Operation not permitted"}}
    )
    (line,) = doctor.obstacles()
    assert line.startswith(f"{doctor._STEPS[step][0]}: Operation not permitted; mend: ")


def test_a_trial_that_says_nothing_is_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert len(doctor.obstacles()) == len(WALLS)


def test_a_temporary_directory_without_programs_is_an_obstacle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mounted = SimpleNamespace(f_flag=os.ST_NOEXEC | os.ST_NODEV)
    monkeypatch.setattr(os, "statvfs", lambda _: mounted)
    (line,) = doctor.obstacles()
    assert "is mounted noexec; mend: set TMPDIR" in line


# A user namespace that allows no other, and no capability: a user of a locked-down machine.
LOCKED_DOWN = (
    "echo 0 > /proc/sys/user/max_user_namespaces;"
    'exec setpriv --inh-caps=-all --bounding-set=-all "$@"'
)


@pytest.fixture
def locked_down() -> Callable[..., subprocess.CompletedProcess[str]]:
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip(f"needs root and {', '.join(TOOLS)}")

    def run_there(*command: str) -> subprocess.CompletedProcess[str]:
        line = ["unshare", "--user", "--map-root-user", "sh", "-c", LOCKED_DOWN, "sh", *command]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)

    return run_there


def test_a_machine_without_user_namespaces_is_told_so_and_how_to_mend_it(
    locked_down: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    ran = locked_down(sys.executable, "-m", "casemate.client.cli", "doctor", "--json")
    assert ran.returncode == 1, ran.stderr
    report = json.loads(ran.stdout)
    check = by_name(report)["user namespaces"]
    assert not report["able"]
    assert check["found"] == "No space left on device"  # the kernel's word for a limit of zero
    assert check["mend"] == "sysctl -w user.max_user_namespaces=15000"
    assert by_name(report)["pivot_root"]["found"] == "not tried"


@pytest.mark.process_form("casemate-sim, which starts processes, is what they try")
def test_the_launcher_says_the_same_there(
    tree: Path, short_path: Path, locked_down: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ran = locked_down(
        *(sys.executable, "-m", "casemate_devkit.launcher", "--tree", str(tree)),
        *("--pki", str(short_path / "pki"), "--run", str(short_path / "run")),
    )
    assert ran.returncode == 1
    assert "step 'namespaces': unshare: No space left on device" in ran.stderr
    assert "mend: sysctl -w user.max_user_namespaces=15000" in ran.stderr
    assert "casemate doctor" in ran.stderr
    assert "Traceback" not in ran.stderr
