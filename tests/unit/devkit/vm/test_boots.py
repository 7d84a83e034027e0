"""A machine that hangs at boot is started once more, and then it is said; a slow one is waited for.

The machine is a program in place of QEMU; all around it is what boots machines in every test.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate_devkit.eif.build import build
from casemate_devkit.supervision import CANNOT_START, ENCLAVE_ENDED
from casemate_devkit.vm import __main__ as vm
from tests.support.patience import patiently
from tests.support.small_tree import PROFILE, make_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

QEMU = """#!{python}
import os, pathlib, sys, time
boots = pathlib.Path("{folder}") / "boots"
with boots.open("a") as file:
    file.write(f"{{os.getpid()}}\\n")
number = len(boots.read_text().splitlines())
print("kernel of boot", number, flush=True)
print('{{"event":"FAILED","count":19}}' if number in {fails} else "", flush=True)
if number in {hangs}:
    time.sleep(600)
until = time.monotonic() + {computes_s}
while time.monotonic() < until:
    pass
if number not in {fails}:
    print('{{"event":"STARTED","count":7}}', flush=True)
    print("what serves prints nothing that is kept", flush=True)
    time.sleep(1)
    print('{{"event":"STOPPED"}}', flush=True)
"""
VSOCK = """#!{python}
import re, socket, sys, time
kept = []
for path in re.findall("(?:socket|uds-path)=([^,]+)", " ".join(sys.argv[1:])):
    kept.append(socket.socket(socket.AF_UNIX))
    kept[-1].bind(path)
time.sleep(600)
"""


WITHIN_S = (1.0, 10.0, 40.0)  # for a program to start, however slow the machine


@dataclass
class Bench:
    folder: Path

    def boot(self, *, hangs: set[int], fails: set[int], computes_s: float = 0.0) -> int:
        """Run the command from the beginning; the status it ends with."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        (self.folder / "boots").write_text("")
        facts = {"python": sys.executable, "folder": self.folder, "computes_s": computes_s}
        base = self.folder / "tools"
        for place, program in (
            ("emulator/usr/lib64/ld-linux-x86-64.so.2", QEMU),
            ("vsock/usr/bin/vhost-device-vsock", VSOCK),
        ):
            path = base / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(program.format(hangs=hangs, fails=fails, **facts))
            path.chmod(0o755)
        (base / "toolbox.json").write_text('{"layout": 1}')
        run = ("--pki", str(self.folder / "pki"), "--run", str(self.folder / "run"))
        return vm.main(["--eif", str(self.folder / "a.eif"), "--tools", str(base), *run])

    def boots(self) -> list[int]:
        """The process ids of the machines."""
        return [int(line) for line in (self.folder / "boots").read_text().splitlines()]

    def console(self) -> str:
        return (self.folder / "run/console.log").read_text()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="cm-") as folder:  # short: unix sockets lie in it
        build(make_parts(Path(folder)), PROFILE, Path(folder) / "a.eif")
        yield Bench(Path(folder))


def ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_the_limits_are_a_minute_of_idleness_a_quarter_of_an_hour_and_one_retry() -> None:
    assert (vm.HANGS_S, vm.BOOT_S, vm.BOOTS) == (60.0, 900.0, 2)


def test_a_machine_that_boots_is_started_once(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    assert bench.boot(hangs=set(), fails=set()) == ENCLAVE_ENDED
    said = capfd.readouterr()
    assert len(bench.boots()) == 1
    assert json.loads(said.out)["form"] == "vm"
    assert "last event STOPPED" in said.err
    assert bench.console() == "kernel of boot 1\n\n"  # and nothing from when it served


def test_a_machine_that_hangs_is_ended_and_started_once_more(
    bench: Bench, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def boot(within_s: float) -> tuple[int, int]:
        """The status, and how many machines came as far as to run."""
        capfd.readouterr()
        monkeypatch.setattr(vm, "HANGS_S", within_s)
        started = time.monotonic()
        status = bench.boot(hangs={1}, fails=set())
        assert time.monotonic() - started >= within_s
        return status, len(bench.boots())

    expected = ENCLAVE_ENDED, 2
    assert patiently(boot, expected.__eq__, WITHIN_S) == expected
    assert [ended(pid) for pid in bench.boots()] == [True, True]
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 1
    assert "casemate-vm: boot 1 of 2: nothing served, last event none" in said.err
    assert bench.console().startswith("kernel of boot 2\n")


def test_a_machine_that_ends_by_itself_is_not_waited_for(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    assert bench.boot(hangs=set(), fails={1}) == ENCLAVE_ENDED
    assert "boot 1 of 2: nothing served, last event FAILED" in capfd.readouterr().err
    assert len(bench.boots()) == 2


def test_a_machine_that_computes_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boot(hangs_s: float) -> tuple[int, int]:
        monkeypatch.setattr(vm, "HANGS_S", hangs_s)
        status = bench.boot(hangs=set(), fails=set(), computes_s=2.5 * hangs_s)
        return status, len(bench.boots())

    expected = ENCLAVE_ENDED, 1
    assert patiently(boot, expected.__eq__, (2.0, 10.0, 30.0)) == expected


def test_but_not_for_ever(
    bench: Bench, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "BOOT_S", 3.0)
    assert bench.boot(hangs=set(), fails=set(), computes_s=600.0) == CANNOT_START
    assert "the image did not boot in 2 tries" in capfd.readouterr().err


def test_a_second_hang_is_the_end_and_names_the_log(
    bench: Bench, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def boot(within_s: float) -> int:
        capfd.readouterr()
        monkeypatch.setattr(vm, "HANGS_S", within_s)
        assert bench.boot(hangs={1, 2}, fails=set()) == CANNOT_START
        return len(bench.boots())

    assert patiently(boot, lambda count: count == 2, WITHIN_S) == 2
    said = capfd.readouterr()
    log = bench.folder / "run/console.log"
    assert said.out == ""
    assert f"the image did not boot in 2 tries; {log} says: kernel of boot 2" in said.err
    assert "Traceback" not in said.err
    assert bench.console().startswith("kernel of boot 2\n")
    assert [ended(pid) for pid in bench.boots()] == [True, True]
