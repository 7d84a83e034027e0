"""The hypervisor's part: measure a staged tree, give it a fresh bank, run it isolated."""

from __future__ import annotations

import contextlib
import json
import os
import signal
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
from casemate_enclave.accelerators import gpu_devices

_STOP_S: Final = 10.0
_OTHERS: Final = 0o077
_CAP_SYS_ADMIN: Final = 1 << 21


class EnclaveProcess:
    """One start of an enclave, as a context manager: entering starts it, leaving stops it.

    ``measurement`` is what the launcher measured, ``nsm`` the module of this one start, ``pki``
    what signs for it, ``run_dir`` what the enclave shares with the host, ``form`` how it is
    isolated. ``pid`` is the enclave's as seen from here, 0 before the start; ``nsm_dir`` holds the
    module's socket.
    """

    def __init__(
        self,
        tree: Path,
        pki_dir: Path,
        run_dir: Path,
        *,
        debug: bool = False,
        unsafe_no_namespaces: bool = False,
        gpu: bool = False,
        stderr: int | IO[Any] | None = None,
    ) -> None:
        """Measure ``tree`` and make a register bank of its own for it.

        ``run_dir`` is made if missing and must be private. With ``gpu`` the enclave sees this
        machine's GPUs; what it makes of them, its configuration says. ``stderr`` is where the
        enclave's events go, as for subprocess.Popen. Raises DevkitError for directories that
        are not what they should be.
        """
        self.tree, self.run_dir = tree.resolve(), run_dir.resolve()
        self.form = cmdline.UNSAFE_PROCESS if unsafe_no_namespaces else cmdline.PROCESS
        self.measurement = measure(self.tree, self.form)
        self.pki = NitroPki.create(pki_dir)
        registers = boot_registers(self.measurement, self.pki.instance_id, debug=debug)
        self.nsm = SimulatedNsm(self.pki, registers)
        self.pid = 0
        self.nsm_dir: Path | None = None
        self._gpu = gpu
        self._stderr = stderr
        self._spawner: subprocess.Popen[str] | None = None
        self._status: int | None = None
        self._resources = contextlib.ExitStack()

    def start(self) -> Self:
        """Start it, once; raises DevkitError if this machine does not allow the isolation."""
        privileged = _is_privileged()
        isolated = self.form == cmdline.PROCESS
        _share(self.run_dir, with_nobody=privileged and isolated)
        with contextlib.ExitStack() as resources:
            server = resources.enter_context(NsmServer(self.nsm))
            self.nsm_dir = server.directory
            if isolated:
                plan = _plan(
                    self.tree,
                    self.run_dir,
                    server.directory,
                    user_namespace=not privileged,
                    gpu=self._gpu,
                )
            else:
                plan = unsafe_form.plan(self.tree, self.run_dir, server.directory)
            resources.callback((self.run_dir / "enclave.sock").unlink, missing_ok=True)
            self._spawner = resources.enter_context(_spawner(plan, self._stderr))
            resources.callback(_kill, self._spawner)
            self.pid = _reported_pid(self._spawner)
            server.admit(self.pid)
            self._resources = resources.pop_all()
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the enclave's end; return its exit status, negative for a signal.

        Raises TimeoutError while it runs on.
        """
        spawner = self._started()
        try:
            spawner.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError("the enclave still runs") from None
        if self._status is None:
            # A spawner that was killed itself reports nothing, and the kernel killed the enclave
            # with it.
            self._status = int(_read_report(spawner).get("exit", -signal.SIGKILL))
        return self._status

    def running(self) -> bool:
        """Whether the enclave still runs."""
        return self._started().poll() is None

    def stop(self) -> int:
        """End the enclave at once, as a hypervisor does, and clean up; idempotent."""
        _kill(self._started())
        status = self.wait(_STOP_S)
        self._resources.close()
        return status

    def _started(self) -> subprocess.Popen[str]:
        if self._spawner is None:
            raise DevkitError("the enclave was not started")
        return self._spawner


def measure(tree: Path, form: str) -> Measurement:
    """Measure a staged tree as it is measured in ``form``; raises DevkitError if there is none."""
    if not (tree / cmdline.INTERPRETER[1:]).exists():
        raise DevkitError(
            f"{tree} is no staged tree: make one with python -m casemate_devkit.stage"
        )
    return measure_tree(tree, cmdline.enclave_cmdline(form))


def _plan(tree: Path, run_dir: Path, nsm: Path, *, user_namespace: bool, gpu: bool) -> Plan:
    missing = [point for point in namespaces.MOUNT_POINTS if not (tree / point).exists()]
    devices = tuple(gpu_devices()) if gpu else ()
    if gpu and not devices:
        raise DevkitError("this machine has no device of a GPU: /dev/nvidia0, /dev/nvidiactl")
    if missing:
        raise DevkitError(f"{tree} lacks mount points, stage it again: {', '.join(missing)}")
    walls = namespaces.Walls(
        tree=str(tree),
        run=str(run_dir),
        nsm=str(nsm),
        private=str(nsm.parent),
        user_namespace=user_namespace,
        devices=devices,
    )
    arguments = cmdline.enclave_cmdline(cmdline.PROCESS)
    return Plan(executable=cmdline.INTERPRETER, arguments=arguments, walls=walls)


def _is_privileged() -> bool:
    """Whether namespaces need no user namespace: root, and not a container's half of it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return os.geteuid() == 0 and bool(int(effective.split()[1], 16) & _CAP_SYS_ADMIN)


def _share(run_dir: Path, *, with_nobody: bool) -> None:
    """Make the shared directory writable for the enclave's user, beside its owner only."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if run_dir.stat().st_mode & _OTHERS:
        raise DevkitError(
            f"{run_dir} is open to other users: chmod 700 it, or name another --run directory"
        )
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
    raise DevkitError(
        "\n  ".join(
            [
                f"this machine does not let us isolate the enclave: step {step!r}: {reason}",
                *_obstacles(),
                "all that was looked at: casemate doctor",
                "for a trial without isolation: --unsafe-no-namespaces",
            ]
        )
    )


def _obstacles() -> list[str]:
    from casemate.client import doctor  # noqa: PLC0415 - the client's libraries, upon failure only

    return doctor.obstacles()


def _kill(spawner: subprocess.Popen[str]) -> None:
    """Cut the life line and wait; the spawner kills the enclave."""
    if spawner.stdin:
        spawner.stdin.close()
    spawner.wait(_STOP_S)
