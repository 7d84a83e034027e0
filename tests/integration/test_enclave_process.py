"""The enclave's own process, in its unsafe form: how it starts, confines itself and ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate import cbor
from casemate.channel import UnixAddress, connect
from casemate.frames import FrameType, exchange
from casemate_devkit.nsm import SimulatedNsm
from casemate_devkit.nsm_server import NsmServer
from casemate_devkit.pki import NitroPki

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.integration,
    pytest.mark.process_form("what a process does and says in its unsafe form is what they try"),
]
ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture
def nsm() -> Iterator[NsmServer]:
    with NsmServer(SimulatedNsm(NitroPki.create(), {})) as server:
        yield server


def start(folder: Path, nsm_socket: str, form: str = "unsafe-process") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "casemate_enclave"]
    command += ["--listen", f"unix:{folder}/enclave.sock", "--egress", f"unix:{folder}/egress.sock"]
    command += ["--nsm", nsm_socket, "--form", form]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


def events(stderr: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in stderr.splitlines()]


def test_it_starts_answers_and_ends_when_told(nsm: NsmServer, tmp_path: Path) -> None:
    with start(tmp_path, f"unix:{nsm.directory}/nsm.sock") as process:
        nsm.admit(process.pid)
        assert process.stderr is not None
        started = [json.loads(process.stderr.readline()) for _ in range(2)]
        # From a checkout there is no tree to confine it to.
        assert started == [{"event": "UNSAFE_FORM"}, {"event": "STARTED", "count": 0}]
        with connect(UnixAddress(f"{tmp_path}/enclave.sock"), 5) as channel:
            health = cbor.decode(bytes(exchange(channel, FrameType.HEALTH)))
            assert (health["state"], health["form"]) == ("unconfigured", "unsafe-process")
            facts = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            assert "NoNewPrivs:\t1" in facts
            assert "Seccomp:\t2" in facts
            process.send_signal(signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0
    assert stdout == ""
    assert [event["event"] for event in events(stderr)] == ["STOPPED"]


def test_without_a_security_module_it_does_not_start(tmp_path: Path) -> None:
    with start(tmp_path, f"unix:{tmp_path}/nothing.sock") as process:
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert (stdout, events(stderr)) == ("", [{"event": "FAILED", "code": "UNAVAILABLE"}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["", "debug", "PROCESS"])
def test_an_unknown_form_is_refused(tmp_path: Path, wrong: str) -> None:
    with start(tmp_path, "/dev/nsm", wrong) as process:
        process.communicate(timeout=300)
    assert process.returncode == 2
