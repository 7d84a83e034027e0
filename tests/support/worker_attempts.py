"""What a worker would try that a model has taken over: it knows who started it, and its user."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import resource
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import sandbox_attempts as known
from tests.support.sandbox_attempts import checked, libc, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    Attempt = Callable[[dict[str, Any]], object]

CALLS, FILES = "calls", "files"
# Attempt -> the defences that have to be left out for it to succeed.
NEEDS: dict[str, set[str]] = {}
ATTEMPTS: dict[str, Attempt] = {}


def against(*defences: str) -> Callable[[Attempt], Attempt]:
    """Register an attempt that these defences stop, each by itself."""

    def add(function: Attempt) -> Attempt:
        ATTEMPTS[function.__name__] = function
        NEEDS[function.__name__] = set(defences)
        return function

    return add


for attempt in (
    *(known.socket_inet, known.fork, known.make_memory_executable, known.make_memory_file),
    *(known.replace_filter, known.become_dumpable),
):
    against(CALLS)(attempt)
for attempt in (known.connect_tcp, known.read_memory_of_another, known.signal_another):
    against(CALLS, FILES)(attempt)
for attempt in (known.read_environment_of_another, known.read_own_maps):
    against(FILES)(attempt)


@against(CALLS)
def socket_unix(_: dict[str, Any]) -> None:
    """What the security module of a process form, and the host, listen on."""
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()


@against(CALLS)
def socket_pair(_: dict[str, Any]) -> None:
    for end in socket.socketpair():
        end.close()


@against(CALLS, FILES)
def execute(_: dict[str, Any]) -> None:
    known.in_child(lambda: os.execve("/proc/self/exe", ["python", "-V"], {}))


@against(CALLS)
def raise_limit(_: dict[str, Any]) -> None:
    """Lower what it may allocate no further, and certainly not raise it."""
    limit = resource.getrlimit(resource.RLIMIT_STACK)
    checked(libc().setrlimit(resource.RLIMIT_STACK, struct.pack("qq", *limit)))


@against(CALLS, FILES)
def trace_another(given: dict[str, Any]) -> None:
    checked(libc().ptrace(0x4206, given["victim"], 0, 0))  # PTRACE_SEIZE


@against(FILES)
def open_memory_of_another(given: dict[str, Any]) -> None:
    with Path(f"/proc/{given['pid']}/mem").open("rb", buffering=0) as file:
        file.seek(given["address"])
        file.read(16)


@against(FILES)
def read_a_secret(given: dict[str, Any]) -> None:
    Path(given["file"]).read_bytes()


@against(CALLS, FILES)
def write_a_file(given: dict[str, Any]) -> None:
    Path(given["file"]).open("ab").close()


@against(CALLS, FILES)
def take_a_descriptor(given: dict[str, Any]) -> None:
    """Take a descriptor of the process that started everything (pidfd_getfd)."""
    pidfd = checked(libc().syscall(ctypes.c_long(434), given["pid"], 0))
    try:
        os.close(checked(libc().syscall(ctypes.c_long(438), pidfd, 1, 0)))
    finally:
        os.close(pidfd)


def serve(control: socket.socket) -> None:
    """Stand in for loading a model: make every attempt, and say what became of it."""
    given = json.loads(control.recv(1 << 16))
    outcomes = {name: outcome(functools.partial(f, given)) for name, f in ATTEMPTS.items()}
    control.send(json.dumps(outcomes).encode())
    os._exit(0)
