"""THREATS C5, S1: what a worker can do that a model has taken over, tried from within one.

The process is forked and confined by the production spawner; in place of loading a model it makes
the attempts. Each is made again without the defences that its table names: there it must succeed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casemate_enclave.accelerators import NONE, Needs
from casemate_enclave.workers.spawning import Spawner
from tests.support import workers
from tests.support.sandbox_attempts import DONE
from tests.support.worker_attempts import ATTEMPTS, NEEDS
from tests.support.workers import children

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_devkit.local import LocalDeployment

    Attempts = Callable[..., dict[str, str]]

pytestmark = pytest.mark.integration

NOTHING: frozenset[str] = frozenset()

# The spawner as the enclave starts it, with another program for its workers; the second argument
# says what to leave out.
SPAWNER = """
import json, os, socket, sys, types
from casemate_enclave import sandbox
from casemate_enclave.accelerators import Needs
from casemate_enclave.hardening import harden_process
from casemate_enclave.workers import spawner
from tests.support import worker_attempts

skip = set(json.loads(sys.argv[2]))
harden_process()
hostile = types.ModuleType("casemate_enclave.workers.worker")
hostile.serve_model = worker_attempts.serve
sys.modules[hostile.__name__] = hostile
most = Needs(*json.loads(sys.argv[3]))
folders = {sys.base_prefix, sys.prefix, "/usr", "/lib", "/lib64", os.getcwd()}
readable = [path for path in sorted(folders) if os.path.exists(path)]
if "files" not in skip:
    sandbox.confine_files(readable, [], gpu=most.gpu)
if "calls" in skip:
    spawner.confine_worker = lambda _: True
    spawner.confine_spawner = lambda _: True
spawner.serve(socket.socket(fileno=int(sys.argv[1])), 0, (readable, []), most)
"""
VICTIM = "import ctypes, sys; ctypes.CDLL(None).prctl(4, 1, 0, 0, 0); sys.stdin.read()"


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    """Outcomes of all attempts without the named defences, each variant started once.

    ``most`` is what the spawner keeps for workers with accelerators, ``needs`` what this one has.
    """
    secret = tmp_path_factory.mktemp("secret") / "file"
    secret.write_text("not a worker's")

    @functools.cache
    def outcomes(skip: frozenset[str], most: Needs = NONE, needs: Needs = NONE) -> dict[str, str]:
        kept = json.dumps([most.code, most.gpu])
        channel, process = workers.start(SPAWNER, json.dumps(sorted(skip)), kept)
        victim = subprocess.Popen([sys.executable, "-c", VICTIM], stdin=subprocess.PIPE)
        try:
            _, control = Spawner(channel, lambda: None).start(1 << 32, needs, lambda _: None)
            with control, socket.create_server(("127.0.0.1", 0)) as server:
                control.settimeout(60)
                given = {
                    "tcp_port": server.getsockname()[1],
                    "pid": os.getpid(),
                    "victim": victim.pid,
                    "address": id(secret),
                    "file": str(secret),
                }
                control.send(json.dumps(given).encode())
                answer: dict[str, str] = json.loads(control.recv(1 << 16))
                return answer
        finally:
            victim.communicate()
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
            channel.close()
            process.wait(60)

    return outcomes


@pytest.mark.parametrize("name", sorted(ATTEMPTS))
def test_c5_s1_an_attempt_from_inside_a_worker_is_refused(name: str, attempts: Attempts) -> None:
    assert attempts(NOTHING)[name] != DONE


@pytest.mark.parametrize("name", sorted(ATTEMPTS))
def test_it_succeeds_without_its_defences(name: str, attempts: Attempts) -> None:
    assert attempts(frozenset(NEEDS[name]))[name] == DONE


CODE, GPU = Needs(code=True), Needs(code=True, gpu=True)


@pytest.mark.parametrize(
    ("most", "needs", "possible"),
    [
        (CODE, NONE, set()),
        (CODE, CODE, {"make_memory_executable"}),
        (GPU, NONE, set()),
        (GPU, CODE, {"make_memory_executable"}),
        (GPU, GPU, {"make_memory_executable", "read_own_maps"}),
    ],
)
def test_c5_a_worker_gets_of_what_accelerators_need_what_its_own_do(
    most: Needs, needs: Needs, possible: set[str], attempts: Attempts
) -> None:
    outcomes = attempts(NOTHING, most, needs)
    assert {name for name, outcome in outcomes.items() if outcome == DONE} == possible


# -- the workers of a real enclave -----------------------------------------------------------------


def status_of(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def family(deployment: LocalDeployment) -> tuple[int, int, int]:
    """The enclave, its spawner, a worker."""
    assert deployment.enclave is not None
    enclave = deployment.enclave.latest["pid"]
    [spawner] = children(enclave)
    return enclave, spawner, min(children(spawner))


def test_c5_every_process_is_confined_and_a_workers_list_is_the_shortest(
    family: tuple[int, int, int],
) -> None:
    for filters, process in zip((1, 1, 2), family, strict=True):
        status = status_of(process)
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert status["Seccomp_filters"] == str(filters)
        limits = Path(f"/proc/{process}/limits").read_text().splitlines()
        assert [line.split()[4:6] for line in limits if "core" in line] == [["0", "0"]]
        assert Path(f"/proc/{process}/mem").stat().st_uid == 0  # not dumpable


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can see more of them")
def test_c5_a_worker_holds_its_connections_and_no_way_to_anything_else(
    family: tuple[int, int, int],
) -> None:
    enclave, spawner, worker = family
    listening = Path(f"/proc/{enclave}/net/unix").read_text()
    named = {line.split()[6] for line in listening.splitlines()[1:] if len(line.split()) > 7}
    for process in (spawner, worker):
        links = {path.name: str(path.readlink()) for path in Path(f"/proc/{process}/fd").iterdir()}
        # Standard descriptors lead into a pipe that nobody reads.
        assert {links.pop(name).split(":")[0] for name in "012"} == {"pipe"}
        kinds = {target.split(":")[0] for target in links.values()}
        assert kinds <= {"socket", "pipe", "/memfd"}
        inodes = {t[8:-1] for t in links.values() if t.startswith("socket:")}
        assert not inodes & named
    for name in ("mnt", "pid", "net", "ipc", "uts"):
        own, outer = (Path(f"/proc/{p}/ns/{name}").readlink() for p in (worker, "self"))
        assert own != outer


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can see their memory maps")
def test_c5_onnxruntime_is_in_no_process_that_has_keys(family: tuple[int, int, int]) -> None:
    enclave, spawner, worker = (Path(f"/proc/{process}/maps").read_text() for process in family)
    assert "onnxruntime" not in enclave
    assert "_rust" in enclave  # cryptography: it is the process that opens requests
    assert "onnxruntime" in spawner
    assert "onnxruntime" in worker
    assert "wxp" not in enclave + spawner + worker
