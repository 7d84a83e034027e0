"""The system calls of a running enclave: found by tracing it, then cut to what it needs.

Three lists: the process that holds the keys, the spawner that forks workers, and the workers, in
which models run. Not in the first, and so refused, are among others: execve, fork and vfork,
ptrace, process_vm_*, kill and its kin, bind and listen, recvmsg, every call that makes, truncates,
links, renames or removes a named file, mount and its kin, unshare, setns, bpf, perf_event_open,
userfaultfd, io_uring_*, keyctl, module loading, and seccomp itself. A worker furthermore makes no
socket of any kind, no memory file, and connects to nothing.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from typing import TYPE_CHECKING, Final

from casemate_enclave.accelerators import NONE
from casemate_enclave.sandbox.seccomp import Among

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casemate_enclave.accelerators import Needs

_UNIX: Final = int(socket.AF_UNIX)
_VSOCK: Final = 40  # AF_VSOCK
_STREAM: Final = int(socket.SOCK_STREAM)
_PACKETS: Final = int(socket.SOCK_SEQPACKET)
_TYPE_MASK: Final = 0xF  # SOCK_TYPE_MASK: without SOCK_CLOEXEC and SOCK_NONBLOCK
_IN_VM: Final = frozenset({"vm", "nitro-enclave"})

# What glibc's pthread_create asks for, to the bit: no new process, no new namespace.
_NEW_THREAD: Final = 0x3D0F00
# And its fork: SIGCHLD, CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID.
_NEW_PROCESS: Final = 0x1200011
_PROT_EXEC: Final = 0x4
# Access mode, O_CREAT, O_TRUNC and the bit of O_TMPFILE: the same on both processors.
_OPEN_FOR_WRITING: Final = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | 0o20000000
_FILE_CONTROL: Final = (fcntl.F_GETFD, fcntl.F_GETFL)
_DUPLICATE: Final = 1030  # F_DUPFD_CLOEXEC: mmap of Python's does it
_MEMORY_FILE: Final = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
_GROW: Final = 0  # fallocate: no hole is made
_SOCKET_CONTROL: Final = (0x5421, 0x541B, 0x5451, 0x5450)  # FIONBIO, FIONREAD, FIOCLEX, FIONCLEX
_NSM_CONTROL: Final = 0xC0200A00
_CLOCK_REALTIME: Final = 0
_DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG
# The kernels of onnxruntime for AMX ask the operating system for the processor's tile registers.
_ARCH_REQ_XCOMP_PERM: Final = 0x1023
_XFEATURE_XTILEDATA: Final = 18

_ALWAYS: Final = (
    # Memory; nothing becomes executable, see below
    *("brk", "munmap", "mremap", "madvise"),
    # Threads and time
    *("futex", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "getcpu"),
    *("clock_gettime", "clock_nanosleep", "restart_syscall"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "exit", "exit_group"),
    # Descriptors; files only as far as Landlock lets them open, and for reading
    *("read", "write", "close", "lseek", "poll", "ppoll"),
    *("fstat", "newfstatat", "getdents64"),
    *("sendto", "sendmsg", "recvfrom", "getsockname", "getsockopt"),
    # Facts about itself; callers take it that these cannot fail
    *("getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "uname", "getrandom"),
)
_ENCLAVE: Final = (
    *("mlock", "munlock", "writev"),
    # Without recvmsg no descriptor can be handed in
    *("connect", "accept4", "shutdown", "getpeername"),
    *("ftruncate", "pwrite64"),  # of memory files: no other file opens for writing
)
_WORKER: Final = ("recvmsg", "pread64")  # what the enclave hands in: connections, memory files
_SPAWNER: Final = ("wait4", "getppid", "prlimit64", "seccomp")

# Machine code is made while a model is loaded, and libraries of the tree are looked for by name.
_CODE: Final = ("mmap", "mprotect", "getcwd", "readlink", "readlinkat")
# Devices are opened for writing, and driven by ioctl; Landlock says which files those are.
_GPU: Final = (
    *("openat", "ioctl", "fcntl", "stat", "dup", "pipe2", "eventfd2", "bind", "listen", "unlink"),
)
# The driver's library gives up where it cannot listen for other processes of its user. It gets a
# kind of socket that nothing in an enclave listens on, and cannot accept a connection.
_GPU_SOCKET: Final[Mapping[str, tuple[Among, ...]]] = {
    "socket": (Among(0, (_UNIX,)), Among(1, (_PACKETS,), _TYPE_MASK)),
}
_NARROWS: Final = (*("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),)

# A filter cannot read clone3's arguments; glibc starts threads with clone where clone3 does not
# exist.
MISSING: Final = ("clone3",)


def calls_of(form: str) -> Mapping[str, tuple[Among, ...]]:
    """The calls of the enclave in ``form`` (SPEC 3.4), with the tests that arguments must pass."""
    in_vm = form in _IN_VM
    families = (_UNIX, _VSOCK) if in_vm else (_UNIX,)
    controls = (*_SOCKET_CONTROL, _NSM_CONTROL) if in_vm else _SOCKET_CONTROL
    return {
        **_tested(_NEW_THREAD, files=(*_FILE_CONTROL, _DUPLICATE, fcntl.F_ADD_SEALS)),
        "socket": (Among(0, families), Among(1, (_STREAM,), _TYPE_MASK)),
        "socketpair": (Among(0, (_UNIX,)), Among(1, (_PACKETS,), _TYPE_MASK)),
        "memfd_create": (Among(1, (_MEMORY_FILE,)),),
        "fallocate": (Among(1, (_GROW,)),),
        "ioctl": (Among(1, controls),),
        # A machine of its own has a wall clock of its own, set from the device.
        **({"clock_settime": (Among(0, (_CLOCK_REALTIME,)),)} if in_vm else {}),
        **dict.fromkeys((*_ALWAYS, *_ENCLAVE), ()),
    }


def calls_of_workers(needs: Needs = NONE) -> Mapping[str, tuple[Among, ...]]:
    """The calls of a process in which a model runs: on what it was given, and its own memory."""
    return {
        **_tested(_NEW_THREAD, files=(*_FILE_CONTROL, _DUPLICATE)),
        **(_GPU_SOCKET if needs.gpu else {}),
        **dict.fromkeys((*_ALWAYS, *_WORKER, *_needed(needs)), ()),
    }


def calls_of_spawner(most: Needs = NONE) -> Mapping[str, tuple[Among, ...]]:
    """The calls of the process that forks workers: a worker's, and what takes it there."""
    return {
        **_tested(_NEW_THREAD, _NEW_PROCESS, files=(*_FILE_CONTROL, _DUPLICATE)),
        "kill": (Among(1, (int(signal.SIGKILL),)),),
        "prctl": (Among(0, (_DIE_WITH_PARENT,)),),
        **(_GPU_SOCKET if most.gpu else {}),
        **dict.fromkeys((*_ALWAYS, *_WORKER, *_SPAWNER, *_needed(most)), ()),
        **dict.fromkeys(_NARROWS if most.gpu else (), ()),
    }


def _needed(needs: Needs) -> tuple[str, ...]:
    """Calls that accelerators add, or that they do with any arguments."""
    return (*(_CODE if needs.code else ()), *(_GPU if needs.gpu else ()))


def _tested(*clones: int, files: tuple[int, ...]) -> Mapping[str, tuple[Among, ...]]:
    """Calls with tests, in front: the kernel remembers its answer to calls without any."""
    return {
        "mmap": (Among(2, (0,), _PROT_EXEC),),
        "mprotect": (Among(2, (0,), _PROT_EXEC),),
        "openat": (Among(2, (0,), _OPEN_FOR_WRITING),),
        "clone": (Among(0, clones),),
        "fcntl": (Among(1, files),),
        "arch_prctl": (Among(0, (_ARCH_REQ_XCOMP_PERM,)), Among(1, (_XFEATURE_XTILEDATA,))),
    }
