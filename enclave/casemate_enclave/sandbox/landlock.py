"""Landlock: which files a process can reach, from now on and for good.

The kernel applies it to the calling thread and to what that thread starts, so it comes before any
other thread. It says nothing of connecting to a unix socket by its path: that is the mount
namespace's part.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from casemate_enclave.sandbox import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterable

# linux/landlock.h
_VERSION_QUERY: Final = 1
_RULE_PATH_BENEATH: Final = 1
_ATTRIBUTE: Final = struct.Struct("=QQQ")  # handled access to files, to the network; scoped
_PATH_BENEATH: Final = struct.Struct("=Qi")  # packed: allowed access, file descriptor

_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIRECTORY: Final = 1 << 3
_REMOVE_FILE: Final = 1 << 5
_MAKE_SOCKET: Final = 1 << 9
_TRUNCATE: Final = 1 << 14
_IOCTL_DEVICE: Final = 1 << 15

READ: Final = _READ_FILE | _READ_DIRECTORY
SOCKETS: Final = _MAKE_SOCKET | _REMOVE_FILE
REWRITE: Final = READ | _WRITE_FILE | _TRUNCATE  # of files that are there
DEVICE: Final = _READ_FILE | _WRITE_FILE | _IOCTL_DEVICE
_ON_FILES: Final = (
    _WRITE_FILE | _READ_FILE | _IOCTL_DEVICE
)  # all that the kernel takes for what is no directory

NEWEST: Final = 7  # later versions of the interface add rights that this module does not know
_FILES_FIRST: Final = (1 << 13) - 1  # execute, write, read, read directory, remove (2), make (7)
_FILES_ADDED: Final = (
    (2, 1 << 13),
    (3, _TRUNCATE),
    (5, _IOCTL_DEVICE),
)  # refer, truncate, ioctl of devices
_NETWORK: Final = (4, 0b11)  # bind and connect of TCP
_SCOPES: Final = (6, 0b11)  # abstract unix sockets, signals
_ABSENT: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP})


def version() -> int:
    """Return the kernel's version of the interface, at most ``NEWEST``; 0 where there is none."""
    try:
        return min(syscalls.call("landlock_create_ruleset", None, 0, _VERSION_QUERY), NEWEST)
    except OSError as error:
        if error.errno in _ABSENT:
            return 0
        raise


def handled(abi: int) -> tuple[int, int, int]:
    """Everything that version ``abi`` can refuse: masks for files, network and scopes."""
    files = _FILES_FIRST
    for since, right in _FILES_ADDED:
        files |= right if abi >= since else 0
    network, scopes = (mask if abi >= since else 0 for since, mask in (_NETWORK, _SCOPES))
    return files, network, scopes


def attribute(abi: int) -> bytes:
    """Return ``struct landlock_ruleset_attr`` as far as version ``abi`` knows it."""
    size = 8 if abi < _NETWORK[0] else 16 if abi < _SCOPES[0] else 24
    return _ATTRIBUTE.pack(*handled(abi))[:size]


def restrict(rules: Iterable[tuple[str, int]], abi: int) -> None:
    """Leave this thread, and what it starts, only ``rules``: paths with the rights beneath them.

    A path that does not exist is left out: what is made there later stays out of reach. Raises
    OSError.
    """
    data = attribute(abi)
    ruleset = syscalls.call("landlock_create_ruleset", _buffer(data), len(data), 0)
    try:
        for path, rights in rules:
            _add(ruleset, path, rights & handled(abi)[0])
        syscalls.call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _add(ruleset: int, path: str, rights: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            rights &= _ON_FILES
        rule = _PATH_BENEATH.pack(rights, target)
        syscalls.call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, _buffer(rule), 0)
    finally:
        os.close(target)


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))
