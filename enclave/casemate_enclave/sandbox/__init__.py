"""How the enclave's process confines itself, whatever the machine around it does.

Two steps, in this order, each once and for good:

1. ``confine_files``, before any other thread, so before numpy and onnxruntime: their imports start
   some;
2. ``confine_calls``, when everything is imported and the listener exists, before the first foreign
   byte.

The namespaces and the root around the process are made by whoever starts it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate_enclave.accelerators import NONE
from casemate_enclave.sandbox import landlock, seccomp, syscalls
from casemate_enclave.sandbox.allowed import (
    MISSING,
    calls_of,
    calls_of_spawner,
    calls_of_workers,
)
from casemate_enclave.sandbox.memory import lock_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casemate_enclave.accelerators import Needs
    from casemate_enclave.sandbox.seccomp import Among

__all__ = [
    "Confinement",
    "confine_calls",
    "confine_files",
    "confine_spawner",
    "confine_worker",
    "confine_worker_files",
    "lock_memory",
    "tree_paths",
]

_PR_SET_NO_NEW_PRIVS: Final = 38
_NEVER_READABLE: Final = frozenset({"proc", "sys", "dev", "run", "tmp"})
# onnxruntime chooses its kernels by them; without them it guesses, and chooses slower ones.
_MACHINE_FACTS: Final = ("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu")
# The library of a GPU's driver reads them; it names its threads, and gives up where it cannot.
_GPU_FACTS: Final = (
    *("/proc/driver/nvidia", "/proc/devices", "/proc/sys/vm/mmap_min_addr"),
    *("/sys/devices/system", "/sys/bus/pci", "/sys/module/nvidia", "/sys/module/nvidia_uvm"),
)
_PROCESSES: Final = "/proc"
# In the forms whose kernel is the host's; the kernel inside a VM is measured, and the VM is the
# wall.
_FILES_REQUIRED: Final = frozenset({"process", "container"})
_CALLS_NOT_REQUIRED: Final = frozenset({"unsafe-process"})

_done: Final[set[str]] = set()


@dataclass(frozen=True, slots=True)
class Confinement:
    """What the kernel granted: a fact to report, and in most forms a condition of starting."""

    landlock_abi: int  # 0: none
    seccomp: bool

    def enough_for(self, form: str) -> bool:
        """Whether the enclave may start in ``form`` (SPEC 3.4)."""
        files = self.landlock_abi > 0 or form not in _FILES_REQUIRED
        return files and (self.seccomp or form in _CALLS_NOT_REQUIRED)


def tree_paths(root: str = "/") -> list[str]:
    """What of a staged tree at ``root`` may be read: all but the directories of mount points."""
    return sorted(str(path) for path in Path(root).iterdir() if path.name not in _NEVER_READABLE)


def confine_files(
    readable: Sequence[str],
    sockets: Sequence[str],
    devices: Sequence[str] = (),
    *,
    gpu: bool = False,
) -> int:
    """Refuse this thread, and what it starts, all other files; return Landlock's version.

    ``readable`` files, and what lies beneath directories, can be read; in the directories
    ``sockets`` sockets can be made and removed; ``devices`` can be opened for reading, writing and
    ioctl; ``gpu`` adds what a GPU's driver asks for. 0: the kernel has no Landlock, nothing is
    confined. Raises RuntimeError when called twice or beside another thread, which would stay
    free; OSError when the kernel refuses.
    """
    _once("files")
    if _threads() != 1:
        raise RuntimeError("another thread runs already: it would stay unconfined")
    _no_new_privileges()
    abi = landlock.version()
    if abi:
        facts = (*_MACHINE_FACTS, *_GPU_FACTS) if gpu else _MACHINE_FACTS
        rules = [(path, landlock.READ) for path in (*readable, *facts)]
        rules += [(path, landlock.SOCKETS) for path in sockets]
        rules += [(path, landlock.DEVICE) for path in devices]
        rules += [(_PROCESSES, landlock.REWRITE)] if gpu else []
        landlock.restrict(rules, abi)
    return abi


def confine_worker_files(readable: Sequence[str], devices: Sequence[str], *, gpu: bool) -> None:
    """Leave a worker its own part of what its spawner keeps for workers with GPUs.

    One that needs none gets no device; one that needs some gets them, and of all processes itself.
    """
    if not (abi := landlock.version()):
        return
    facts = (*_MACHINE_FACTS, *_GPU_FACTS) if gpu else _MACHINE_FACTS
    rules = [(path, landlock.READ) for path in (*readable, *facts)]
    if gpu:
        rules += [(path, landlock.DEVICE) for path in devices]
        rules.append((f"{_PROCESSES}/{os.getpid()}", landlock.REWRITE))
    landlock.restrict(rules, abi)


def confine_calls(form: str) -> bool:
    """Refuse every thread all calls that a running enclave does not need; False: the kernel cannot.

    ``form`` is that of SPEC 3.4. Afterwards no machine code can be loaded and no listener made:
    import and listen before. Raises RuntimeError when called twice, OSError when the kernel refuses
    the filter, or lets through what the filter refuses.
    """
    _once("calls")
    _no_new_privileges()
    return _filter(_program(calls_of(form)), _make_socket)


def confine_spawner(most: Needs = NONE) -> bool:
    """Do the same for the process that forks workers, before it is asked for the first.

    ``most``: what a worker can be given, since no child has what its parent lacks.
    """
    _once("spawner")
    _no_new_privileges()
    for needs in (NONE, most):
        _worker_program(needs)  # once for all workers
    return _filter(_program(calls_of_spawner(most)), _make_socket)


def confine_worker(needs: Needs = NONE) -> bool:
    """Do the same for a worker, before it is given the first foreign byte: below its spawner's."""
    _once("worker")
    return _filter(_worker_program(needs), _look_for_children)


@functools.cache
def _worker_program(needs: Needs) -> bytes:
    return _program(calls_of_workers(needs))


def _program(rules: Mapping[str, tuple[Among, ...]]) -> bytes:
    return seccomp.assemble(rules, MISSING, syscalls.this_machine())


def _filter(program: bytes, attempt: Callable[[], object]) -> bool:
    try:
        seccomp.load(program)
    except OSError as error:
        if error.errno in {errno.ENOSYS, errno.EINVAL}:
            return False
        raise
    _prove(attempt)
    return True


def _make_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def _look_for_children() -> None:
    """What the spawner may do."""
    os.waitpid(-1, os.WNOHANG)


def _prove(attempt: Callable[[], object]) -> None:
    """Try what the filter must refuse: one that is not in force must not pass for one that is."""
    try:
        attempt()
    except PermissionError:
        return
    except OSError as error:
        raise OSError(error.errno, "seccomp: refused by something else") from None
    raise OSError(errno.EPERM, "seccomp: the filter refuses nothing")


def _once(step: str) -> None:
    if step in _done:
        raise RuntimeError("confined already")
    _done.add(step)


def _threads() -> int:
    try:
        return len(list(Path("/proc/self/task").iterdir()))
    except OSError:  # no /proc here
        return threading.active_count()


def _no_new_privileges() -> None:
    """What the kernel demands before either step."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (1, 0, 0, 0)]
    if libc.prctl(ctypes.c_int(_PR_SET_NO_NEW_PRIVS), *words) != 0:
        raise OSError(ctypes.get_errno(), "prctl refused")
