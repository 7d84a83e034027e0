"""The process between launcher and enclave: ``python -I -m casemate_devkit.spawner PLAN``.

Namespaces must be entered by a process with a single thread that forks once, which the launcher is
not. Its standard input is its life line: when the launcher ends, however it ends, the line closes
and the enclave is killed, as a hypervisor would. It reports on standard output, one JSON object a
line: ``{"pid": n}`` once the enclave runs, ``{"exit": status}`` when it ended, or ``{"failed":
step, ...}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Final, NoReturn

from casemate_devkit import namespaces

_LIFELINE: Final = 0
_REPORTS: Final = 1
_REPORT_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and how; ``walls`` is None for the unsafe form, which has no namespaces."""

    executable: str
    arguments: tuple[str, ...]
    walls: namespaces.Walls | None

    def to_json(self) -> str:
        """Write it for the spawner's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what ``to_json`` wrote."""
        fields = json.loads(text)
        walls = None
        if (given := fields["walls"]) is not None:
            walls = namespaces.Walls(**{**given, "devices": tuple(given["devices"])})
        return cls(
            executable=fields["executable"], arguments=tuple(fields["arguments"]), walls=walls
        )


class _StepError(Exception):
    """A step of the start failed; ``report`` says which and why."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(step)
        self.report = {"failed": step, "reason": str(error.strerror)}

    @classmethod
    def of(cls, report: dict[str, str]) -> _StepError:
        """Rebuild the child's."""
        return cls(report["failed"], OSError(0, report["reason"]))


def _report(**fields: object) -> None:
    os.write(_REPORTS, json.dumps(fields).encode() + b"\n")


def _become_enclave(plan: Plan, spawner: int, nothing: int) -> NoReturn:
    """Run the steps that are the child's; ends in exec, or raises _StepError.

    ``spawner`` reads end-of-file when the parent is gone, ``nothing`` is the null device. All other
    descriptors but standard error close upon exec: Python opens none that would not.
    """
    step = "file system"
    try:
        if plan.walls is not None:
            namespaces.confine_files(plan.walls)
        step = "privileges"
        namespaces.drop_privileges(plan.walls)
        step = "restrictions"
        namespaces.restrict_process()
        # The kernel's promise to kill us with our parent came too late if the parent is gone
        # already.
        if select.select([spawner], [], [], 0)[0]:
            os._exit(1)
        os.dup2(nothing, _LIFELINE)
        os.dup2(nothing, _REPORTS)
        step = "exec"
        os.execve(plan.executable, plan.arguments, {})  # noqa: S606 - no shell, on purpose
    except OSError as error:
        raise _StepError(step, error) from None


def _child(plan: Plan, failures: int, spawner: int, nothing: int) -> NoReturn:
    try:
        _become_enclave(plan, spawner, nothing)
    except _StepError as error:
        os.write(failures, json.dumps(error.report).encode())
    finally:
        os._exit(1)


def _spawn(plan: Plan) -> int:
    """Start the enclave and return its pid; raises _StepError if it does not come to exec."""
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        if plan.walls is not None:
            namespaces.enter(plan.walls)
    except OSError as error:
        raise _StepError("namespaces", error) from None
    failed, failures = os.pipe()
    alive, _held = os.pipe()  # the end that the parent holds until it ends, and the child gives up
    pid = os.fork()
    if pid == 0:
        os.close(_held)
        _child(plan, failures, alive, nothing)
    for descriptor in (failures, alive, nothing):
        os.close(descriptor)
    # End-of-file is the exec: all of the child's copies are gone.
    report = os.read(failed, _REPORT_MAX)
    if report:
        os.waitpid(pid, 0)
        raise _StepError.of(json.loads(report))
    return pid


def _supervise(pid: int) -> int:
    """Wait for the enclave's end, or the launcher's; return the exit status, or -signal."""
    ended = os.pidfd_open(pid)
    readable, _, _ = select.select([ended, _LIFELINE], [], [])
    if ended not in readable:
        signal.pidfd_send_signal(ended, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> int:
    """Run the plan in the only argument; 0 if the enclave was started, whatever became of it."""
    plan = Plan.from_json(sys.argv[1])
    try:
        pid = _spawn(plan)
    except _StepError as error:
        _report(**error.report)
        return 1
    _report(pid=pid)
    with contextlib.suppress(BrokenPipeError):
        _report(exit=_supervise(pid))
    return 0


if __name__ == "__main__":
    sys.exit(main())
