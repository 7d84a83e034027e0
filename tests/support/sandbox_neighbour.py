"""Another process of the enclave's user.

``attack PID UID`` tries to look into process PID, ``victim UID`` waits to be looked at. Both print
one JSON line. Started as root they become the user first; neither keeps a capability.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from casemate_devkit import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

PTRACE_ATTACH, PTRACE_DETACH, PTRACE_SEIZE = 16, 17, 0x4206
PIDFD_GETFD = 438
SECRET = ctypes.create_string_buffer(b"what a victim holds in memory")


def become(user: int) -> None:
    if os.geteuid() == 0 and user != 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    syscalls.drop_capabilities()
    _libc().prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: a change of user took it away


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def attach(pid: int) -> None:
    _checked(_libc().ptrace(PTRACE_ATTACH, pid, None, None))
    os.waitpid(pid, 0x40000000)  # __WALL
    _checked(_libc().ptrace(PTRACE_DETACH, pid, None, None))


def seize(pid: int) -> None:
    _checked(_libc().ptrace(PTRACE_SEIZE, pid, None, None))


def read_memory(pid: int) -> None:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(_address(pid))
        memory.read(16)


def read_memory_by_call(pid: int) -> None:
    target = ctypes.create_string_buffer(16)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(target), 16)
    try:
        remote = (ctypes.c_size_t * 2)(_address(pid), 16)
    except OSError:
        remote = (ctypes.c_size_t * 2)(4096, 16)
    _checked(_libc().process_vm_readv(pid, local, 1, remote, 1, 0))


def _address(pid: int) -> int:
    return int(Path(f"/proc/{pid}/maps").read_text().partition("-")[0], 16)


def read_environment(pid: int) -> None:
    Path(f"/proc/{pid}/environ").read_bytes()


def read_maps(pid: int) -> None:
    Path(f"/proc/{pid}/maps").read_bytes()


def enter_root(pid: int) -> None:
    os.listdir(f"/proc/{pid}/root")  # noqa: PTH208 - the link itself must be followed


def list_descriptors(pid: int) -> None:
    os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - as above


def take_descriptor(pid: int) -> None:
    handle = os.pidfd_open(pid)
    os.close(_checked(_libc().syscall(PIDFD_GETFD, handle, 2, 0)))


ATTACKS: tuple[Callable[[int], None], ...] = (
    read_memory,
    read_memory_by_call,
    read_environment,
    read_maps,
    enter_root,
    list_descriptors,
    take_descriptor,
    attach,
    seize,
)


def attack(pid: int) -> dict[str, str]:
    outcomes = {}
    for function in ATTACKS:
        try:
            function(pid)
            outcomes[function.__name__] = "done"
        except OSError as error:
            outcomes[function.__name__] = errno.errorcode.get(error.errno or 0, str(error))
    return outcomes


def say(facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main() -> None:
    mode, *numbers = sys.argv[1:]
    if mode == "attack":
        pid, user = map(int, numbers)
        become(user)
        say(attack(pid))
    else:
        become(int(numbers[0]))
        say({"pid": os.getpid(), "address": ctypes.addressof(SECRET)})
        time.sleep(600)


if __name__ == "__main__":
    main()
