"""A process that tries what isolating an enclave takes: ``python -I -S THIS DIRECTORY``.

Run by ``casemate.client.doctor``, apart, because a namespace once entered is not left. It imports
the standard library only, changes nothing outside of its own namespaces, and prints one JSON
object: each step's name with what was found, or with ``{"refused": reason}``. What comes after a
refused step of the namespaces is not tried.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[], str]

_NEW_USER: Final = 0x1000_0000
_NEW_OTHERS: Final = 0x0002_0000 | 0x0400_0000 | 0x0800_0000 | 0x2000_0000 | 0x4000_0000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x4_0000
_DETACH: Final = 2
_CAP_SYS_ADMIN: Final = 1 << 21
_NO_NEW_PRIVS: Final = 38
_ACTION_AVAILABLE: Final = 2
_KILL_PROCESS: Final = 0x8000_0000
_VERSION_QUERY: Final = 1
_WORKS: Final = "works"
# Calls that the C library has no function for: x86_64, aarch64.
_NUMBERS: Final = {
    "pivot_root": (155, 41),
    "seccomp": (317, 277),
    "landlock_create_ruleset": (444, 444),
}

_libc = ctypes.CDLL(None, use_errno=True)


def privileged() -> bool:
    """Whether this process needs no user namespace: root, and not a container's half of it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return os.geteuid() == 0 and bool(int(effective.split()[1], 16) & _CAP_SYS_ADMIN)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _call(name: str, *arguments: int | bytes | None) -> int:
    number = _NUMBERS[name][platform.machine() == "aarch64"]
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words))


def _mount(source: bytes | None, target: bytes, flags: int) -> None:
    _checked(_libc.mount(source, target, None, ctypes.c_ulong(flags), None))


def user_namespace() -> str:
    """A namespace in which this user is somebody else; the superuser needs none."""
    if privileged():
        return "not needed by root"
    user = os.geteuid()
    _checked(_libc.unshare(_NEW_USER))
    Path("/proc/self/uid_map").write_text(f"65534 {user} 1", encoding="ascii")
    return _WORKS


def namespaces() -> str:
    """Mounts, processes, network, IPC and host name of its own."""
    _checked(_libc.unshare(_NEW_OTHERS))
    return _WORKS


def mount() -> str:
    """A directory bound over itself, read-only."""
    directory = os.fsencode(sys.argv[1])
    _mount(None, b"/", _RECURSIVE | _PRIVATE)
    _mount(directory, directory, _BIND)
    _mount(None, directory, _REMOUNT | _BIND | _READ_ONLY)
    return _WORKS


def pivot_root() -> str:
    """That directory as the root, and the old root gone."""
    os.chdir(sys.argv[1])
    _call("pivot_root", b".", b".")
    _checked(_libc.umount2(b".", _DETACH))
    return _WORKS


def landlock() -> str:
    """Landlock is there and switched on."""
    return f"version {_call('landlock_create_ruleset', None, 0, _VERSION_QUERY)}"


def seccomp() -> str:
    """Filters of system calls may be set, and may end a process."""
    _checked(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _call("seccomp", _ACTION_AVAILABLE, 0, bytes(ctypes.c_uint32(_KILL_PROCESS)))
    return _WORKS


KERNEL: Final[tuple[Step, ...]] = (landlock, seccomp)
WALLS: Final[tuple[Step, ...]] = (user_namespace, namespaces, mount, pivot_root)


def attempt(step: Step) -> str | dict[str, str]:
    """Return what ``step`` found, or why the kernel refused it."""
    try:
        return step()
    except OSError as error:
        return {"refused": error.strerror or "no reason given"}


def main() -> None:
    """Try everything and print what came of it."""
    found = {step.__name__: attempt(step) for step in KERNEL}
    for step in WALLS:
        found[step.__name__] = attempt(step)
        if isinstance(found[step.__name__], dict):
            break
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
