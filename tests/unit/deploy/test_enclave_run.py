"""deploy/systemd/casemate-enclave-run with a ``nitro-cli`` that does as it is told.

The units themselves run under systemd in tests/systemd.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.attacker import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = Path(__file__).resolve().parents[3] / "deploy/systemd"
LISTED = '[\\n  {\\n    "EnclaveName": "casemate",\\n    "State": "RUNNING"\\n  }\\n]\\n'
OTHERS = LISTED.replace("casemate", "casemate-2")
RUN = (
    "run-enclave --enclave-name casemate --enclave-cid 16"
    " --eif-path /usr/share/casemate/casemate.eif --cpu-count 2 --memory 2048"
)
NITRO_CLI = """#!/bin/sh
echo "$@" >> {folder}/calls
case $1 in
describe-enclaves) cat {folder}/listed 2>/dev/null ;;
run-enclave) exit $(cat {folder}/status) ;;
esac
"""


class Parent:
    """A folder with a ``nitro-cli``: what it lists, how it ends, how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "nitro-cli").write_text(NITRO_CLI.format(folder=shlex.quote(str(folder))))
        (folder / "nitro-cli").chmod(0o755)
        # `sleep 2` would make these tests as slow.
        (folder / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.3\n")
        (folder / "sleep").chmod(0o755)
        self.listed(LISTED)
        self.ends(0)

    def listed(self, text: str | None) -> None:
        path = self.folder / "listed"
        if text is None:
            path.unlink()
            return
        (self.folder / "new").write_text(text.replace("\\n", "\n"))
        (self.folder / "new").replace(path)

    def ends(self, status: int) -> None:
        (self.folder / "status").write_text(f"{status}")

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [UNITS / "casemate-enclave-run"],
            env={"PATH": f"{self.folder}:{os.defpath}", **environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def environment() -> dict[str, str]:
    """The unit's own, as it is written there."""
    (line,) = [
        line.removeprefix("Environment=")
        for line in (UNITS / "casemate-enclave.service").read_text().splitlines()
        if line.startswith("Environment=")
    ]
    return dict(word.split("=", 1) for word in shlex.split(line))


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    return Parent(tmp_path)


@pytest.fixture
def running(parent: Parent) -> Iterator[subprocess.Popen[str]]:
    process = parent.start()
    assert eventually(lambda: "describe-enclaves" in parent.calls())
    yield process
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def test_it_runs_the_image_never_in_debug_mode(
    parent: Parent, running: subprocess.Popen[str]
) -> None:
    assert parent.calls()[:2] == [
        "terminate-enclave --enclave-name casemate",  # of a life before
        RUN,
    ]
    time.sleep(0.5)
    assert running.poll() is None


def test_the_enclaves_end_is_a_failure_that_systemd_sees(
    parent: Parent, running: subprocess.Popen[str]
) -> None:
    parent.listed(OTHERS)
    assert running.wait(60) == 1
    assert running.stdout
    assert "the enclave has ended" in running.stdout.read()


def test_told_to_stop_it_ends_the_enclave_and_is_content(
    parent: Parent, running: subprocess.Popen[str]
) -> None:
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 0
    assert parent.calls()[-1] == "terminate-enclave --enclave-name casemate"


def test_that_no_list_can_be_had_for_once_ends_nothing(
    parent: Parent, running: subprocess.Popen[str]
) -> None:
    calls = len(parent.calls())
    parent.listed(None)
    assert eventually(lambda: len(parent.calls()) >= calls + 1)
    parent.listed(LISTED)
    calls = len(parent.calls())
    assert eventually(lambda: len(parent.calls()) >= calls + 6)
    assert running.poll() is None
    parent.listed(None)
    assert running.wait(60) == 1


def test_what_does_not_start_is_a_failure(parent: Parent) -> None:
    parent.ends(39)
    process = parent.start()
    assert process.wait(60) == 39
    process.communicate()
    assert "describe-enclaves" not in parent.calls()
