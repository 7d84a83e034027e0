"""System call numbers of the two processors that Casemate runs on, and a way to do such calls."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# linux/audit.h: EM_X86_64 and EM_AARCH64, 64-bit, little-endian
_AUDIT_X86_64: Final = 0xC000003E
_AUDIT_AARCH64: Final = 0xC00000B7

# asm/unistd_64.h. Calls that only one processor has are in its table alone.
_X86_64: Final[Mapping[str, int]] = {
    "read": 0,
    "write": 1,
    "close": 3,
    "stat": 4,
    "fstat": 5,
    "poll": 7,
    "lseek": 8,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "ioctl": 16,
    "pread64": 17,
    "pwrite64": 18,
    "writev": 20,
    "sched_yield": 24,
    "mremap": 25,
    "madvise": 28,
    "dup": 32,
    "getpid": 39,
    "socket": 41,
    "connect": 42,
    "sendto": 44,
    "recvfrom": 45,
    "sendmsg": 46,
    "recvmsg": 47,
    "shutdown": 48,
    "bind": 49,
    "listen": 50,
    "getsockname": 51,
    "getpeername": 52,
    "socketpair": 53,
    "getsockopt": 55,
    "clone": 56,
    "exit": 60,
    "wait4": 61,
    "kill": 62,
    "uname": 63,
    "fcntl": 72,
    "ftruncate": 77,
    "getcwd": 79,
    "unlink": 87,
    "readlink": 89,
    "getuid": 102,
    "getgid": 104,
    "geteuid": 107,
    "getegid": 108,
    "getppid": 110,
    "mlock": 149,
    "munlock": 150,
    "prctl": 157,
    "arch_prctl": 158,
    "gettid": 186,
    "futex": 202,
    "sched_getaffinity": 204,
    "getdents64": 217,
    "restart_syscall": 219,
    "clock_settime": 227,
    "clock_gettime": 228,
    "clock_nanosleep": 230,
    "exit_group": 231,
    "openat": 257,
    "newfstatat": 262,
    "readlinkat": 267,
    "ppoll": 271,
    "set_robust_list": 273,
    "fallocate": 285,
    "accept4": 288,
    "eventfd2": 290,
    "pipe2": 293,
    "prlimit64": 302,
    "getcpu": 309,
    "seccomp": 317,
    "getrandom": 318,
    "memfd_create": 319,
    "rseq": 334,
    "clone3": 435,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}

# asm-generic/unistd.h
_AARCH64: Final[Mapping[str, int]] = {
    "getcwd": 17,
    "eventfd2": 19,
    "dup": 23,
    "fcntl": 25,
    "ioctl": 29,
    "ftruncate": 46,
    "fallocate": 47,
    "openat": 56,
    "close": 57,
    "pipe2": 59,
    "getdents64": 61,
    "lseek": 62,
    "read": 63,
    "write": 64,
    "writev": 66,
    "pread64": 67,
    "pwrite64": 68,
    "ppoll": 73,
    "readlinkat": 78,
    "newfstatat": 79,
    "fstat": 80,
    "exit": 93,
    "exit_group": 94,
    "futex": 98,
    "set_robust_list": 99,
    "clock_settime": 112,
    "clock_gettime": 113,
    "clock_nanosleep": 115,
    "sched_getaffinity": 123,
    "sched_yield": 124,
    "restart_syscall": 128,
    "kill": 129,
    "rt_sigaction": 134,
    "rt_sigprocmask": 135,
    "rt_sigreturn": 139,
    "uname": 160,
    "prctl": 167,
    "getcpu": 168,
    "getpid": 172,
    "getppid": 173,
    "getuid": 174,
    "geteuid": 175,
    "getgid": 176,
    "getegid": 177,
    "gettid": 178,
    "socket": 198,
    "socketpair": 199,
    "bind": 200,
    "listen": 201,
    "connect": 203,
    "getsockname": 204,
    "getpeername": 205,
    "sendto": 206,
    "recvfrom": 207,
    "getsockopt": 209,
    "shutdown": 210,
    "sendmsg": 211,
    "recvmsg": 212,
    "brk": 214,
    "munmap": 215,
    "mremap": 216,
    "clone": 220,
    "mmap": 222,
    "mprotect": 226,
    "mlock": 228,
    "munlock": 229,
    "madvise": 233,
    "accept4": 242,
    "wait4": 260,
    "prlimit64": 261,
    "seccomp": 277,
    "getrandom": 278,
    "memfd_create": 279,
    "rseq": 293,
    "clone3": 435,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What a filter has to know of a processor."""

    audit: int
    numbers: Mapping[str, int]
    has_x32: bool  # a second set of numbers, with bit 30, under the same audit value


X86_64: Final = Machine(_AUDIT_X86_64, _X86_64, has_x32=True)
AARCH64: Final = Machine(_AUDIT_AARCH64, _AARCH64, has_x32=False)
_MACHINES: Final = {"x86_64": X86_64, "aarch64": AARCH64}


def this_machine() -> Machine:
    """The processor this process runs on; raises OSError for one that has no table."""
    name = os.uname().machine
    if name not in _MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:  # noqa: PLR2004 - 64 bits
        raise OSError(f"no system call table for {name}")
    return _MACHINES[name]


def call(name: str, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """Do a system call; raises OSError with the kernel's errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = libc.syscall(ctypes.c_long(this_machine().numbers[name]), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result
