"""The hypervisor's part, from Python: measure a staged tree, give it a fresh register bank, run it isolated."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Final, Self

from casemate.attestation.measurement import Measurement, measure_tree
from casemate_devkit import cmdline, namespaces, unsafe_form
from casemate_devkit.errors import DevkitError
from casemate_devkit.nsm import SimulatedNsm, boot_registers
from casemate_devkit.nsm_server import NsmServer
from casemate_devkit.pki import NitroPki
from casemate_devkit.spawner import Plan

_STOP_S: Final = 10.0
_OTHERS: Final = 0o077
_CAP_SYS_ADMIN: Final = 1 << 21


class EnclaveProcess:
    """A running enclave, made by ``start``; a context manager that stops it.

    ``pid`` is the enclave's as seen from here, ``measurement`` what the launcher measured, ``nsm`` the
    module of this one start, ``pki`` what signs for it, ``run_dir`` what it shares with the host.
    """

    def __init__(  # noqa: PLR0913 - everything one start consists of
        self,
        *,
        pid: int,
        measurement: Measurement,
        pki: NitroPki,
        nsm: SimulatedNsm,
        run_dir: Path,
        spawner: subprocess.Popen[str],
        resources: contextlib.ExitStack,
    ) -> None:
        self.pid = pid
        self.measurement = measurement
        self.pki = pki
        self.nsm = nsm
        self.run_dir = run_dir
        self._spawner = spawner
        self._resources = resources
        self._status: int | None = None

    @classmethod
    def start(  # noqa: PLR0913 - two directories of the trial, three choices
        cls,
        tree: Path,
        pki_dir: Path,
        run_dir: Path,
        *,
        debug: bool = False,
        unsafe_no_namespaces: bool = False,
        stderr: int | IO[Any] | None = None,
    ) -> Self:
        """Measure ``tree`` and start the enclave in it, with a register bank of its own.

        ``run_dir`` is made if missing and must be private. ``stderr`` is where the enclave's events go
        (as for subprocess.Popen). Raises DevkitError if this machine, or a directory, does not allow it.
        """
        tree, run_dir = tree.resolve(), run_dir.resolve()
        form = cmdline.UNSAFE_PROCESS if unsafe_no_namespaces else cmdline.PROCESS
        measurement = measure(tree, form)
        pki = NitroPki.create(pki_dir)
        nsm = SimulatedNsm(pki, boot_registers(measurement, pki.instance_id, debug=debug))
        privileged = _is_privileged()
        _share(run_dir, with_nobody=privileged and not unsafe_no_namespaces)
        with contextlib.ExitStack() as resources:
            server = resources.enter_context(NsmServer(nsm))
            if unsafe_no_namespaces:
                plan = unsafe_form.plan(tree, run_dir, server.directory)
            else:
                plan = _plan(tree, run_dir, server.directory, user_namespace=not privileged)
            spawner = resources.enter_context(_spawner(plan, stderr))
            resources.callback((run_dir / "enclave.sock").unlink, missing_ok=True)
            resources.callback(_kill, spawner)
            pid = _reported_pid(spawner)
            server.admit(pid)
            return cls(
                pid=pid,
                measurement=measurement,
                pki=pki,
                nsm=nsm,
                run_dir=run_dir,
                spawner=spawner,
                resources=resources.pop_all(),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the enclave's own end; return its exit status, negative for a signal.

        Raises TimeoutError while it runs on.
        """
        try:
            self._spawner.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError("the enclave still runs") from None
        if self._status is None:
            report = _read_report(self._spawner)
            self._status = int(report.get("exit", -9))
        return self._status

    def running(self) -> bool:
        """Whether the enclave still runs."""
        return self._spawner.poll() is None

    def stop(self) -> int:
        """End the enclave at once, as a hypervisor does, and remove what was made for it; idempotent."""
        _kill(self._spawner)
        status = self.wait(_STOP_S)
        self._resources.close()
        return status


def measure(tree: Path, form: str) -> Measurement:
    """Measure a staged tree as it is measured in ``form``; raises DevkitError if there is none."""
    if not (tree / cmdline.INTERPRETER[1:]).exists():
        raise DevkitError(f"{tree} is no staged tree: make one with python -m casemate_devkit.stage")
    return measure_tree(tree, cmdline.enclave_cmdline(form))


def _plan(tree: Path, run_dir: Path, nsm: Path, *, user_namespace: bool) -> Plan:
    missing = [point for point in namespaces.MOUNT_POINTS if not (tree / point).exists()]
    if missing:
        raise DevkitError(f"{tree} lacks mount points, stage it again: {', '.join(missing)}")
    walls = namespaces.Walls(
        tree=str(tree), run=str(run_dir), nsm=str(nsm), user_namespace=user_namespace
    )
    arguments = cmdline.enclave_cmdline(cmdline.PROCESS)
    return Plan(executable=cmdline.INTERPRETER, arguments=arguments, walls=walls)


def _is_privileged() -> bool:
    """Whether namespaces need no user namespace: root, and not a container's half of it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return os.geteuid() == 0 and bool(int(effective.split()[1], 16) & _CAP_SYS_ADMIN)


def _share(run_dir: Path, *, with_nobody: bool) -> None:
    """Make the shared directory writable for the enclave's user, and for nobody else but its host."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if run_dir.stat().st_mode & _OTHERS:
        raise DevkitError(f"{run_dir} is open to other users: chmod 700 it, or name another --run directory")
    if with_nobody:
        os.chown(run_dir, namespaces.ENCLAVE_ID, namespaces.ENCLAVE_ID)


def _spawner(plan: Plan, stderr: int | IO[Any] | None) -> subprocess.Popen[str]:
    """Start the spawner: without our environment and descriptors, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-I", "-m", "casemate_devkit.spawner", plan.to_json()],
        env={},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
        text=True,
    )


def _read_report(spawner: subprocess.Popen[str]) -> dict[str, Any]:
    line = spawner.stdout.readline() if spawner.stdout else ""
    report: dict[str, Any] = json.loads(line) if line else {}
    return report


def _reported_pid(spawner: subprocess.Popen[str]) -> int:
    report = _read_report(spawner)
    if "pid" in report:
        return int(report["pid"])
    step, reason = report.get("failed", "start"), report.get("reason", "the spawner ended")
    hints = namespaces.missing_support() if step in {"namespaces", "file system"} else []
    raise DevkitError(
        "\n  ".join(
            [
                f"this machine does not let us isolate the enclave: step {step!r}: {reason}",
                *hints,
                "needed: root, or unprivileged user namespaces with mounts allowed in them",
                "for a trial without isolation: --unsafe-no-namespaces",
            ]
        )
    )


def _kill(spawner: subprocess.Popen[str]) -> None:
    """Cut the life line and wait; the spawner kills the enclave."""
    if spawner.stdin:
        spawner.stdin.close()
    spawner.wait(_STOP_S)
