"""The system calls of a running enclave: found by tracing it, then cut to what it needs.

Not in the list, and so refused, are among others: execve, fork and vfork, ptrace, process_vm_*,
kill and its kin, bind and listen, every call that makes, truncates, links, renames or removes a
file, memfd_create, mount and its kin, unshare, setns, bpf, perf_event_open, userfaultfd,
io_uring_*, keyctl, module loading, and seccomp itself.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from casemate_enclave.sandbox.seccomp import Among

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNIX: Final = int(socket.AF_UNIX)
_VSOCK: Final = 40  # AF_VSOCK
_STREAM: Final = int(socket.SOCK_STREAM)
_TYPE_MASK: Final = 0xF  # SOCK_TYPE_MASK: without SOCK_CLOEXEC and SOCK_NONBLOCK
_IN_VM: Final = frozenset({"vm", "nitro-enclave"})

# What glibc's pthread_create asks for, to the bit: no new process, no new namespace.
_NEW_THREAD: Final = 0x3D0F00
_PROT_EXEC: Final = 0x4
# Access mode, O_CREAT, O_TRUNC and the bit of O_TMPFILE: the same on both processors.
_OPEN_FOR_WRITING: Final = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | 0o20000000
_FILE_CONTROL: Final = (1, 3)  # F_GETFD, F_GETFL
_SOCKET_CONTROL: Final = (0x5421, 0x541B, 0x5451, 0x5450)  # FIONBIO, FIONREAD, FIOCLEX, FIONCLEX
_NSM_CONTROL: Final = 0xC0200A00
_CLOCK_REALTIME: Final = 0
# The kernels of onnxruntime for AMX ask the operating system for the processor's tile registers.
_ARCH_REQ_XCOMP_PERM: Final = 0x1023
_XFEATURE_XTILEDATA: Final = 18

_ALWAYS: Final = (
    # Memory; nothing becomes executable, see below
    *("brk", "munmap", "mremap", "madvise", "mlock", "munlock"),
    # Threads and time
    *("futex", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "getcpu"),
    *("clock_gettime", "clock_nanosleep", "restart_syscall"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "exit", "exit_group"),
    # Descriptors; files only as far as Landlock lets them open, and for reading
    *("read", "write", "writev", "close", "lseek", "poll", "ppoll"),
    *("fstat", "newfstatat", "getdents64"),
    # Sockets; without recvmsg no descriptor can be handed in
    *("connect", "accept4", "sendto", "sendmsg", "recvfrom", "shutdown"),
    *("getsockname", "getpeername", "getsockopt"),
    # Facts about itself; callers take it that these cannot fail
    *("getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "uname", "getrandom"),
)

# A filter cannot read clone3's arguments; glibc starts threads with clone where clone3 does not
# exist.
MISSING: Final = ("clone3",)


def calls_of(form: str) -> Mapping[str, tuple[Among, ...]]:
    """The calls of the enclave in ``form`` (SPEC 3.4), with the tests that arguments must pass."""
    in_vm = form in _IN_VM
    families = (_UNIX, _VSOCK) if in_vm else (_UNIX,)
    controls = (*_SOCKET_CONTROL, _NSM_CONTROL) if in_vm else _SOCKET_CONTROL
    return {
        # In front, as the kernel remembers its answer to calls without tests and runs no filter.
        "mmap": (Among(2, (0,), _PROT_EXEC),),
        "mprotect": (Among(2, (0,), _PROT_EXEC),),
        "openat": (Among(2, (0,), _OPEN_FOR_WRITING),),
        "clone": (Among(0, (_NEW_THREAD,)),),
        "socket": (Among(0, families), Among(1, (_STREAM,), _TYPE_MASK)),
        "ioctl": (Among(1, controls),),
        "fcntl": (Among(1, _FILE_CONTROL),),
        "arch_prctl": (Among(0, (_ARCH_REQ_XCOMP_PERM,)), Among(1, (_XFEATURE_XTILEDATA,))),
        # A machine of its own has a wall clock of its own, set from the device.
        **({"clock_settime": (Among(0, (_CLOCK_REALTIME,)),)} if in_vm else {}),
        **dict.fromkeys(_ALWAYS, ()),
    }
