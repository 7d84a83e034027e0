"""deploy/systemd, run by systemd as process 1: order, drain, crashes, what each unit may do.

In order: the last tests stop things. What is played here and not AWS's is said in ``aws/``.
"""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casemate.errors import CasemateError
from casemate_devkit.local import MODEL
from tests.support.attacker import eventually
from tests.support.deployment import DATA
from tests.systemd.conftest import Parent, role
from tests.systemd.machine import ROOT

if TYPE_CHECKING:
    from tests.systemd.machine import Instance

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ALLOCATOR, ENCLAVE, HOST = "nitro-enclaves-allocator", "casemate-enclave", "casemate-host"
STARTED, ENDED = "ExecMainStartTimestampMonotonic", "ExecMainExitTimestampMonotonic"


def asks(parent: Parent) -> None:
    """One sealed question, answered."""
    with parent.world.client(kms=True) as client:
        answer = client.infer(MODEL, {"features": DATA.features[:4]})
    assert np.asarray(next(iter(answer.outputs.values()))).shape[0] == 4


def within(parent: Parent) -> float:
    """How long anything may take that starts an enclave, in seconds."""
    return parent.world.form.start_s


def at(instance: Instance, unit: str, name: str) -> int:
    """A unit's time, in microseconds since the machine started."""
    return int(instance.show(unit, name)[name])


def state(instance: Instance, unit: str) -> str:
    return instance.show(unit, "ActiveState")["ActiveState"]


def stopped(instance: Instance, unit: str) -> bool:
    return state(instance, unit) == "inactive"


def pid_of(instance: Instance, unit: str) -> int:
    """The main process, by its number on this machine."""
    inside = instance.show(unit, "MainPID")["MainPID"]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except (OSError, ValueError):
            continue
        if lines["NSpid"].split()[-1] == inside and same_machine(instance, status.parent):
            return int(status.parent.name)
    raise AssertionError(f"{unit} has no process {inside}")


def same_machine(instance: Instance, process: Path) -> bool:
    try:
        return (process / "ns/pid").readlink() == Path(f"/proc/{instance.pid}/ns/pid").readlink()
    except OSError:
        return False


def test_systemd_finds_nothing_wrong_with_the_units(parent: Parent) -> None:
    names = sorted(path.name for path in (ROOT / "deploy/systemd").glob("*.[st]*er*"))
    units = [f"/etc/systemd/system/{name}" for name in names if name.startswith("casemate-")]
    assert len(units) == 4
    assert parent.instance.run("systemd-analyze", "verify", "--man=no", *units) == ""


def test_a_unit_with_a_fault_is_found(parent: Parent) -> None:
    """So silence of the check before says something."""
    script = "sed s/^Restart=always/Restart=allways/ {0}/casemate-host.service > /tmp/x.service"
    parent.instance.run("sh", "-c", script.format("/etc/systemd/system"))
    said = parent.instance.run(
        "systemd-analyze", "verify", "--man=no", "/tmp/x.service", check=False
    )
    assert "allways" in said


def test_the_guides_commands_bring_it_into_service(serving: Parent) -> None:
    asks(serving)
    assert len(serving.hypervisor.enclaves) == 1
    assert serving.hypervisor.refused == []


def test_the_allocator_comes_first_then_the_enclave_then_the_host(serving: Parent) -> None:
    instance = serving.instance
    assert at(instance, ALLOCATOR, ENDED) <= at(instance, ENCLAVE, STARTED)
    assert at(instance, ENCLAVE, STARTED) <= at(instance, HOST, STARTED)
    both = instance.run(
        *("journalctl", "--no-pager", "-o", "cat", "-u", HOST, "-u", "casemate-credentials")
    )
    assert both.index("Finished casemate-credentials") < both.index(f"Started {HOST}")
    for unit in (ALLOCATOR, ENCLAVE, HOST, "casemate-credentials.timer"):
        assert instance.show(unit, "ActiveState", "UnitFileState") == {
            "ActiveState": "active",
            "UnitFileState": "enabled",
        }


def test_the_credentials_are_the_hosts_alone(serving: Parent) -> None:
    found = serving.instance.run("stat", "-c", "%a %U", "/var/lib/casemate/credentials.json")
    assert found == "600 casemate-host\n"
    assert role(serving)["AccessKeyId"] == serving.world.operator.principals["host"].access_key_id
    told = serving.instance.run("systemctl", "list-timers", "--no-pager", "--no-legend")
    assert "casemate-credentials.timer" in told


@pytest.mark.parametrize("unit", [ENCLAVE, HOST])
def test_a_unit_runs_as_its_user_without_any_power(serving: Parent, unit: str) -> None:
    status = Path(f"/proc/{pid_of(serving.instance, unit)}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["CapEff"] == facts["CapPrm"] == facts["CapBnd"] == f"{0:016x}"
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    user = serving.instance.run("id", "-u", unit).strip()
    assert set(facts["Uid"].split()) == {user}
    assert user != "0"


def test_the_host_sees_no_home_and_writes_nothing_but_its_own(serving: Parent) -> None:
    root = Path(f"/proc/{pid_of(serving.instance, HOST)}")
    mounts = {
        line.split()[4]: line.split()[5].split(",")
        for line in (root / "mountinfo").read_text().splitlines()
    }
    assert "ro" in mounts["/"]
    assert "ro" in mounts["/proc/sys"]
    assert {"/home", "/root"} <= set(mounts)  # covered
    limits = (root / "limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


def test_a_crashed_enclave_is_replaced_and_brought_into_service(serving: Parent) -> None:
    instance, before = serving.instance, len(serving.hypervisor.enclaves)
    allocated = at(instance, ALLOCATOR, STARTED)
    (running,) = serving.hypervisor.running()
    os.kill(running.ready["pid"], signal.SIGKILL)
    assert eventually(lambda: len(serving.hypervisor.enclaves) == before + 1, within(serving))
    serving.world.wait_until_serving(within(serving))
    asks(serving)
    assert "the enclave has ended" in instance.journal(ENCLAVE)
    assert len(serving.hypervisor.running()) == 1
    # The drop-in's work: AWS's unit is over once it has run, and would run with each new start.
    assert at(instance, ALLOCATOR, STARTED) == allocated


def test_an_enclave_of_which_nitro_clis_own_process_dies_is_replaced(serving: Parent) -> None:
    before = len(serving.hypervisor.enclaves)
    serving.instance.run("sh", "-c", "kill -9 $(pgrep -f '[n]itro-cli run-enclave')")
    assert eventually(lambda: len(serving.hypervisor.enclaves) == before + 1, within(serving))
    serving.world.wait_until_serving(within(serving))
    assert len(serving.hypervisor.running()) == 1


def test_a_crashed_host_is_started_again(serving: Parent) -> None:
    enclaves = len(serving.hypervisor.enclaves)
    before = pid_of(serving.instance, HOST)
    os.kill(before, signal.SIGKILL)
    serving.world.wait_until_serving(within(serving))
    asks(serving)
    assert pid_of(serving.instance, HOST) != before
    assert len(serving.hypervisor.enclaves) == enclaves  # the same enclave, found as it was


def test_stopping_the_host_drains_it(serving: Parent) -> None:
    """The question under way is answered; nothing new is taken meanwhile."""
    world, instance = serving.world, serving.instance
    with world.client(kms=True) as client, ThreadPoolExecutor(2) as pool:
        client.infer(MODEL, {"features": DATA.features[:4]})
        serving.gate.open.clear()  # what passes between host and enclave waits
        question = pool.submit(client.infer, MODEL, {"features": DATA.features[:4]})
        assert eventually(lambda: serving.gate.held > 500, within(serving))  # no word on health
        stopping = pool.submit(instance.run, "systemctl", "stop", HOST)
        assert eventually(lambda: not world.serving(), within(serving))
        assert state(instance, HOST) == "deactivating"
        assert not question.done()
        serving.gate.open.set()
        assert len(next(iter(question.result(within(serving)).outputs.values()))) == 4
        stopping.result(within(serving))
    told = instance.show(HOST, "ActiveState", "Result", "ExecMainStatus")
    assert told == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    with world.client() as client, pytest.raises(CasemateError):
        client.verify(timeout_s=2)
    instance.run("systemctl", "start", HOST)
    world.wait_until_serving(within(serving))
    asks(serving)


def test_at_shutdown_the_host_ends_before_the_enclave(serving: Parent) -> None:
    """All in one transaction, as a shutdown is: what is under way still has its enclave."""
    instance = serving.instance
    instance.run("systemctl", "isolate", "rest.target")
    for unit in (HOST, ENCLAVE):
        assert eventually(partial(stopped, instance, unit), within(serving))
        assert instance.show(unit, "Result")["Result"] == "success"
    assert at(instance, HOST, ENDED) < at(instance, ENCLAVE, ENDED)
    assert eventually(lambda: not serving.hypervisor.running(), within(serving))
    assert instance.run("nitro-cli", "describe-enclaves") == "[]\n"
    time.sleep(6)  # longer than RestartSec: what was stopped stays so
    assert not serving.hypervisor.running()


def test_a_change_of_the_allocation_stops_the_enclave_first_and_starts_it_again(
    serving: Parent,
) -> None:
    instance = serving.instance
    instance.run("systemctl", "start", HOST)
    serving.world.wait_until_serving(within(serving))
    before = len(serving.hypervisor.enclaves)
    instance.run("systemctl", "restart", ALLOCATOR)
    assert eventually(lambda: len(serving.hypervisor.enclaves) == before + 1, within(serving))
    serving.world.wait_until_serving(within(serving))
    asks(serving)


def test_without_an_allocation_no_enclave_starts_and_the_journal_says_why(serving: Parent) -> None:
    instance, before = serving.instance, len(serving.hypervisor.enclaves)
    instance.run("sed", "-i", "/^---$/d", "/etc/nitro_enclaves/allocator.yaml")
    said = instance.run("systemctl", "restart", ALLOCATOR, check=False)
    assert "Job for nitro-enclaves-allocator.service failed" in said
    assert "missing memory or CPU reservation" in instance.journal(ALLOCATOR)
    said = instance.run("systemctl", "start", ENCLAVE, check=False)
    assert "dependency" in said
    assert len(serving.hypervisor.enclaves) == before
