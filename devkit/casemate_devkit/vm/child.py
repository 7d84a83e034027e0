"""Programs that this process starts and that never outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import IO, TYPE_CHECKING, Any, Final

from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_STOP_S: Final = 10.0
_TETHER: Final = ("setpriv", "--pdeathsig", "KILL", "--")
# The kernel says nothing of an owner that ended before it was asked to.
_UNLESS_LEFT: Final = ("sh", "-c", 'test "$PPID" = "$0" && exec "$@"')
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"

Stream = int | IO[Any] | None


def start(
    command: Sequence[str], *, output: Stream, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that the kernel kills when this one ends, however it ends.

    ``output`` takes both of its streams. Raises DevkitError.
    """
    try:
        return subprocess.Popen(
            [*_TETHER, *_UNLESS_LEFT, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PATH": _PATH, **(environment or {})},
            start_new_session=True,
        )
    except FileNotFoundError:
        raise DevkitError(f"{_TETHER[0]} is missing: it comes with util-linux") from None


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and wait for its end; idempotent."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait(_STOP_S)


def await_socket(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the program has made its socket; raises DevkitError."""
    deadline = time.monotonic() + _STOP_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise DevkitError(f"{process.args!r} made no {path.name}")
        time.sleep(0.02)
