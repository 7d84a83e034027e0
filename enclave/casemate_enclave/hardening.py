"""What a process can do for itself, in every form: no cores, no ptrace, no foreign words.

The process confines its files and calls itself too (``casemate_enclave.sandbox``). The namespaces
and the root around it are made by whoever starts it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import sys
import threading
from typing import TYPE_CHECKING, TextIO

from casemate_enclave.events import Counter, Event

if TYPE_CHECKING:
    from casemate_enclave.events import Journal

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

_NOBODY = 65534  # owns nothing


def harden_process() -> None:
    """Refuse core dumps, other processes' eyes and new privileges; raises OSError."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    faulthandler.disable()


def give_up_root() -> None:
    """Become nobody, without capabilities, in every thread; raises OSError.

    For process 1 of a machine, which the kernel starts as root. The C library passes the change on
    to all threads, and the kernel takes their capabilities with it.
    """
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(word) for word in (value, 0, 0, 0)]
    if libc.prctl(ctypes.c_int(option), *arguments) != 0:
        raise OSError(ctypes.get_errno(), "prctl refused")


def take_standard_error() -> TextIO:
    """Return standard error for the journal alone; whatever else writes there reaches nobody.

    Libraries in machine code print what they like: warnings, names of tensors, last words.
    """
    stream = os.fdopen(os.dup(2), "w", encoding="ascii")
    reader, writer = os.pipe()
    os.close(reader)  # a pipe that nobody reads: there need not be a null device here
    os.dup2(writer, 2, inheritable=False)
    os.close(writer)
    return stream


def silence_tracebacks(journal: Journal) -> None:
    """Replace every hook that would print an exception: its text may quote a tensor or a key."""

    def report(*_: object) -> None:
        journal.count(Counter.INTERNAL_ERRORS)
        journal.emit(Event.INTERNAL_ERROR)

    sys.excepthook = report
    sys.unraisablehook = report
    threading.excepthook = report
