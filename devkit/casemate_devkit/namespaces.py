"""Isolation of the enclave process: what stands in for the hypervisor's walls (process form).

Each function is one step and runs in a process of its own that has one thread and is about to exec.
Order matters: namespaces, file system, privileges last, since each step needs what the next gives
up.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from casemate_devkit import syscalls
from casemate_devkit.cmdline import INTERPRETER, NSM, RUN

ENCLAVE_ID: Final = 65534  # user and group inside: nobody, who owns nothing
_HOSTNAME: Final = "enclave"

# What the enclave sees of this machine, read-only; onnxruntime picks its kernels by the processor,
# and the process may look at itself. No other process, no device, no setting of the kernel.
_VIEWS: Final = ("/proc/cpuinfo", "/proc/meminfo", "/proc/self", "/sys/devices/system/cpu")

# Empty in the staged tree: `_VIEWS` and the two directories are mounted over them. Files end
# without a slash.
MOUNT_POINTS: Final = (
    "dev/",
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/self/",
    f"{RUN[1:]}/",
    f"{NSM[1:]}/",
    "sys/devices/system/cpu/",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walls:
    """The directories that the enclave gets, and whether a user namespace is needed.

    ``private`` is the launcher's own and takes the copy of the interpreter that runs, and the
    folder of ``devices``, if there are any.
    """

    tree: str
    run: str
    nsm: str
    private: str
    user_namespace: bool
    devices: tuple[str, ...] = ()


def enter(walls: Walls) -> None:
    """Leave the user's, mounts', processes', network's, IPC and host name's namespaces.

    The pid namespace takes effect for the next child, which becomes its process 1.
    """
    user = os.geteuid()
    flags = (
        syscalls.CLONE_NEWNS
        | syscalls.CLONE_NEWPID
        | syscalls.CLONE_NEWNET
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWUTS
    )
    syscalls.unshare(flags | (syscalls.CLONE_NEWUSER if walls.user_namespace else 0))
    if walls.user_namespace:
        # The kernel lets users map nobody but themselves. No group is mapped: _hide_interpreter.
        Path("/proc/self/uid_map").write_text(f"{ENCLAVE_ID} {user} 1")
    syscalls.set_hostname(_HOSTNAME)


def confine_files(walls: Walls) -> None:
    """Make the staged tree the root, read-only but for the run directory."""
    syscalls.mount(None, "/", syscalls.MS_REC | syscalls.MS_PRIVATE)
    _bind(walls.tree, walls.tree, syscalls.MS_RDONLY)
    _hide_interpreter(walls)
    _bind(walls.run, walls.tree + RUN, syscalls.MS_NOEXEC)
    for source, target in ((walls.nsm, NSM), *zip(_VIEWS, _VIEWS, strict=True)):
        _bind(source, walls.tree + target, syscalls.MS_RDONLY | syscalls.MS_NOEXEC)
    if walls.devices:
        _show_devices(walls)
    os.chdir(walls.tree)
    syscalls.pivot_root(".", ".")
    syscalls.detach(".")  # the old root lies over the new one, as pivot_root(2) describes
    os.chdir("/")


def _hide_interpreter(walls: Walls) -> None:
    """Run the measured interpreter from a copy of it that nobody can read.

    A process that executes such a file cannot be dumped from its first instruction on, and belongs
    to the user namespace that the file's owner and group are mapped in: the machine's, since no
    group is mapped. Otherwise whoever made the enclave's namespace, so every process of that user,
    would hold every capability over it and could read its memory.
    """
    program = os.path.realpath(walls.tree + INTERPRETER)
    copy = Path(walls.private, "interpreter")
    shutil.copyfile(program, copy)
    copy.chmod(0o111)
    _bind(str(copy), program, syscalls.MS_RDONLY)


def _show_devices(walls: Walls) -> None:
    """Give the enclave the named device nodes, and what their driver's library looks at.

    It finds its way by /sys, and names its threads through /proc, which has to be of the enclave's
    own namespace of processes for that: no other's are in it. Which parts of both can be read or
    written is Landlock's matter.
    """
    folder = Path(walls.private, "dev")
    folder.mkdir(mode=0o755)
    for device in walls.devices:
        (folder / Path(device).name).touch()
    _bind(str(folder), f"{walls.tree}/dev", syscalls.MS_RDONLY | syscalls.MS_NOEXEC)
    for device in walls.devices:
        _bind(device, walls.tree + device, syscalls.MS_NOEXEC, device=True)
    _bind("/sys", f"{walls.tree}/sys", syscalls.MS_RDONLY | syscalls.MS_NOEXEC)
    own = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("proc", f"{walls.tree}/proc", own, "proc")


def _bind(source: str, target: str, flags: int, *, device: bool = False) -> None:
    syscalls.mount(source, target, syscalls.MS_BIND)
    # Within a user namespace, what the machine's owner restricted must stay restricted.
    flags |= syscalls.MS_NOEXEC if os.statvfs(target).f_flag & os.ST_NOEXEC else 0
    flags |= syscalls.MS_NOSUID | (0 if device else syscalls.MS_NODEV)
    syscalls.mount(None, target, syscalls.MS_REMOUNT | syscalls.MS_BIND | flags)


def drop_privileges(walls: Walls | None) -> None:
    """Become nobody without capabilities or a way back; without walls, keep the user."""
    if walls is not None or os.geteuid() == 0:  # others have no capabilities to drop
        syscalls.drop_capability_bounds()
    if walls is not None and not walls.user_namespace:
        os.setgroups([])
        os.setresgid(ENCLAVE_ID, ENCLAVE_ID, ENCLAVE_ID)
        os.setresuid(ENCLAVE_ID, ENCLAVE_ID, ENCLAVE_ID)
    syscalls.drop_capabilities()


def restrict_process() -> None:
    """What holds with namespaces and without: no core files, no new privileges, private files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    syscalls.no_new_privileges()
    syscalls.die_with_parent(signal.SIGKILL)
