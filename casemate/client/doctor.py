"""What this machine can and cannot do for Casemate, found by trying, with the mend for each lack.

Two callers, one set of checks: ``casemate doctor``, and the devkit's launcher when an enclave could
not be isolated.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from casemate.client import isolation_trial

if TYPE_CHECKING:
    from collections.abc import Iterator

Need = Literal["process", "nitro", "advice"]

_TIMEOUT_S: Final = 20
_VERSIONS: Final = ((3, 11), (3, 13))
_MACHINES: Final = ("x86_64", "aarch64")
_LOCKED_BYTES: Final = 256 << 10  # the enclave locks 193 KiB of session keys
_SETTINGS: Final = Path("/proc/sys")
_SWAPS: Final = Path("/proc/swaps")
_DEVICES: Final = Path("/dev")

# Settings that are known to forbid a step, with the value that forbids: what to say of them.
_FORBIDDING: Final = {
    ("user/max_user_namespaces", "0"): "sysctl -w user.max_user_namespaces=15000",
    ("kernel/unprivileged_userns_clone", "0"): "sysctl -w kernel.unprivileged_userns_clone=1",
    ("kernel/apparmor_restrict_unprivileged_userns", "1"): (
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, "
        "or an AppArmor profile for the interpreter that allows userns"
    ),
    ("user/max_mnt_namespaces", "0"): "sysctl -w user.max_mnt_namespaces=15000",
    ("user/max_pid_namespaces", "0"): "sysctl -w user.max_pid_namespaces=15000",
    ("user/max_net_namespaces", "0"): "sysctl -w user.max_net_namespaces=15000",
    ("user/max_ipc_namespaces", "0"): "sysctl -w user.max_ipc_namespaces=15000",
    ("user/max_uts_namespaces", "0"): "sysctl -w user.max_uts_namespaces=15000",
}
_IN_CONTAINER: Final = (
    "run as root, or outside of the container, or allow this container namespaces and mounts "
    "(its seccomp and AppArmor profiles refuse them)"
)
_NOT_TRIED: Final = ("not tried", "mend what is refused above first")
# The steps of the trial: how people know them, and what mends them.
_STEPS: Final = {
    "landlock": (
        "Landlock",
        "Linux 5.13 or later, and landlock in lsm=... on the kernel's command line",
    ),
    "seccomp": ("seccomp filters", "a kernel with CONFIG_SECCOMP_FILTER"),
    "user_namespace": ("user namespaces", _IN_CONTAINER),
    "namespaces": ("mount, pid, net, ipc, uts namespaces", _IN_CONTAINER),
    "mount": ("mounts in a namespace", _IN_CONTAINER),
    "pivot_root": (
        "pivot_root",
        "run where the root is no initial ramdisk, and outside of a container that refuses it",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One fact: ``need`` says what fails without it, ``mend`` what to do (empty when ok)."""

    name: str
    need: Need
    ok: bool
    found: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.found}" + (f"; mend: {self.mend}" if self.mend else "")


def examine() -> tuple[Check, ...]:
    """Try everything; takes well below a second and changes nothing."""
    checks = [_python(), _system()]
    if checks[-1].ok:
        checks += [*_isolation(), _executable(), _locking(), _swap()]
    return (*checks, *_nitro())


def obstacles() -> list[str]:
    """Return what keeps an enclave from running as an isolated process here, a line for each."""
    return [str(check) for check in examine() if check.need == "process" and not check.ok]


def _python() -> Check:
    low, high = _VERSIONS
    return Check(
        name="Python",
        need="process",
        ok=low <= sys.version_info[:2] <= high,
        found=platform.python_version(),
        mend="" if low <= sys.version_info[:2] <= high else "Python 3.11, 3.12 or 3.13",
    )


def _system() -> Check:
    library = "".join(platform.libc_ver()[0:1]) or "no glibc"
    ok = sys.platform == "linux" and library == "glibc" and platform.machine() in _MACHINES
    return Check(
        name="system",
        need="process",
        ok=ok,
        found=f"{platform.system()} {platform.release()}, {platform.machine()}, {library}",
        mend="" if ok else "Linux with glibc on x86_64 or aarch64, also in a virtual machine",
    )


def _isolation() -> Iterator[Check]:
    tried = _tried()
    for step, (name, mend) in _STEPS.items():
        found = tried.get(step)
        if isinstance(found, str):
            yield Check(name=name, need="process", ok=True, found=found)
            continue
        known = "; ".join(_mends()) if mend is _IN_CONTAINER else ""
        reason, mended = (found["refused"], known or mend) if found else _NOT_TRIED
        yield Check(name=name, need="process", ok=False, found=reason, mend=mended)


def _tried() -> dict[str, str | dict[str, str]]:
    """Run the trial in a process of its own; what it cannot say is missing."""
    with tempfile.TemporaryDirectory(prefix="casemate-doctor-") as scratch:
        try:
            ran = subprocess.run(  # noqa: S603 - this interpreter, a file of this package
                [sys.executable, "-I", "-S", isolation_trial.__file__, scratch],
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
                env={},
            )
            found: dict[str, str | dict[str, str]] = json.loads(ran.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return {}
    return found


def _mends() -> list[str]:
    return [mend for (name, value), mend in _FORBIDDING.items() if _setting(name) == value]


def _setting(name: str) -> str | None:
    try:
        return (_SETTINGS / name).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _executable() -> Check:
    """The launcher runs a copy of the interpreter from there."""
    folder = tempfile.gettempdir()
    ok = not os.statvfs(folder).f_flag & os.ST_NOEXEC
    return Check(
        name="programs in the temporary directory",
        need="process",
        ok=ok,
        found=folder if ok else f"{folder} is mounted noexec",
        mend="" if ok else "set TMPDIR to a private directory that is not",
    )


def _locking() -> Check:
    import resource  # noqa: PLC0415 - not on every system that this module is imported on

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    ok = soft == resource.RLIM_INFINITY or soft >= _LOCKED_BYTES
    return Check(
        name="locked memory",
        need="advice",
        ok=ok,
        found="unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB",
        mend="" if ok else "ulimit -l 256, else session keys may reach swap",
    )


def _swap() -> Check:
    try:
        used = _SWAPS.read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        used = []
    return Check(
        name="swap",
        need="advice",
        ok=not used,
        found=f"{len(used)} in use" if used else "none",
        mend="swapoff -a: tensors and weights cannot be locked" if used else "",
    )


def _nitro() -> Iterator[Check]:
    for device, where in (
        ("nitro_enclaves", "on an EC2 parent with enclaves enabled"),
        ("vsock", "on such a parent, and inside an enclave"),
        ("nsm", "inside an enclave, and nowhere else"),
    ):
        ok = (_DEVICES / device).exists()
        found, mend = ("there", "") if ok else ("not there", f"it is {where}")
        yield Check(name=f"/dev/{device}", need="nitro", ok=ok, found=found, mend=mend)
