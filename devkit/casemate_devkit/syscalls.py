"""Every raw system call of the launcher; each raises OSError that names the call."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x4_0000

_MNT_DETACH: Final = 0x2
_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_CAPABILITIES: Final = 64
_EINVAL: Final = 22

# The C library has no wrapper for pivot_root.
_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces that ``flags`` name."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str | None, target: str, flags: int, kind: str | None = None) -> None:
    """Bind, remount or change propagation, or mount a file system of ``kind``."""
    source_bytes = None if source is None else os.fsencode(source)
    kind_bytes = None if kind is None else kind.encode()
    result = _libc.mount(source_bytes, os.fsencode(target), kind_bytes, ctypes.c_ulong(flags), None)
    _check(result, f"mount {target}")


def detach(target: str) -> None:
    """Unmount ``target`` now; whoever still holds it keeps it."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(_MNT_DETACH)), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """Make ``new`` the root directory and move the old one to ``old``."""
    number = _PIVOT_ROOT[platform.machine()]
    result = _libc.syscall(ctypes.c_long(number), os.fsencode(new), os.fsencode(old))
    _check(result, "pivot_root")


def set_hostname(name: str) -> None:
    """Name the machine within the own UTS namespace."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), "sethostname")


def _prctl(option: int, *arguments: int) -> int:
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    return int(_libc.prctl(ctypes.c_int(option), *words))


def die_with_parent(signal: int) -> None:
    """Have the kernel send ``signal`` when the parent ends. A change of user undoes it."""
    _check(_prctl(_PR_SET_PDEATHSIG, signal), "prctl(PDEATHSIG)")


def no_new_privileges() -> None:
    """Let no exec gain privileges from here on."""
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "prctl(NO_NEW_PRIVS)")


def drop_capability_bounds() -> None:
    """Empty the bounding and ambient sets: no exec can bring a capability back."""
    for capability in range(_CAPABILITIES):
        if _prctl(_PR_CAPBSET_DROP, capability) < 0 and ctypes.get_errno() != _EINVAL:
            _check(-1, "prctl(CAPBSET_DROP)")  # EINVAL: past the kernel's last one
    _check(_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL), "prctl(CAP_AMBIENT)")


def drop_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
