"""``python -m casemate_devkit.compose.seccomp``: prints ``docker/seccomp-enclave.json``.

The outer of two filters. The enclave loads its own, narrower one when it is up
(``casemate_enclave.sandbox``), and so do its workers; this one stands from the first instruction
on, for whatever runs in the enclave's container. It is the inner lists, and what starting takes.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from casemate_enclave.sandbox.allowed import (
    MISSING,
    calls_of,
    calls_of_spawner,
    calls_of_workers,
)

_UNIX: Final = 1  # AF_UNIX
_ENOSYS: Final = 38
_NAMESPACES: Final = 0x7E020000  # CLONE_NEW*: none may be made

# The interpreter, the libraries and the confinement itself, found by tracing a start. Calls that
# only one processor has are ignored on the other.
_STARTING: Final = (
    *("execve", "set_tid_address", "prlimit64", "getrlimit", "sysinfo", "prctl", "seccomp"),
    *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
    *("access", "faccessat", "faccessat2", "stat", "lstat", "statx", "readlink", "readlinkat"),
    *("getcwd", "pread64", "dup", "dup2", "dup3", "pipe2", "epoll_create1", "epoll_ctl"),
    *("epoll_wait", "epoll_pwait", "bind", "listen", "chmod", "fchmodat", "unlink", "unlinkat"),
    *("mbind", "sigaltstack", "sched_setaffinity", "set_mempolicy", "get_mempolicy"),
    *("setsockopt", "gettimeofday", "time", "getppid", "open", "capget"),
)
# Those of the container runtime between loading this filter and starting the program.
_RUNTIME: Final = (
    *("fstatfs", "statfs", "openat2", "nanosleep", "tgkill", "close_range", "capset", "chdir"),
    *("setgroups", "setgid", "setuid", "setresgid", "setresuid", "kill", "wait4", "pause"),
)


def profile() -> dict[str, Any]:
    """Return the profile as container engines read it: refused unless listed."""
    narrowed = {"socket", "clone", *MISSING}
    inner = {*calls_of("container"), *calls_of_spawner(), *calls_of_workers()}
    names = {*inner, *_STARTING, *_RUNTIME} - narrowed
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": name, "subArchitectures": []}
            for name in ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
        ],
        "syscalls": [
            _allow(sorted(names)),
            _allow(["socket"], {"index": 0, "value": _UNIX, "op": "SCMP_CMP_EQ"}),
            _allow(
                ["clone"],
                {"index": 0, "value": _NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
            ),
            {"names": list(MISSING), "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        ],
    }


def _allow(names: list[str], *arguments: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ALLOW"}
    return rule | ({"args": list(arguments)} if arguments else {})


def main() -> None:
    """Print the profile."""
    sys.stdout.write(json.dumps(profile(), indent=1) + "\n")


if __name__ == "__main__":
    main()
