"""Which process is at the other end of a unix socket, seen from the machine's pid namespace."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred


@dataclass(frozen=True, slots=True)
class Peer:
    """One process: its pid here, and when it started, in clock ticks since the machine's boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, channel: socket.socket) -> Self:
        """Name the process that connected; raises OSError if it ended or cannot be seen."""
        data = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _, _ = _CREDENTIALS.unpack(data)
        if pid == 0:
            raise OSError("the peer is in a pid namespace that cannot be seen from here")
        return cls(pid, _started(pid))

    def runs(self) -> bool:
        """Whether it has not ended, and its pid is not another's by now."""
        try:
            return _started(self.pid) == self.started
        except OSError:
            return False

    def is_first(self) -> bool:
        """Whether it is process 1 of a container: what a container was started to run."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return False
        line = next((line for line in status.splitlines() if line.startswith("NSpid:")), "")
        pids = line.split()[1:]
        return len(pids) > 1 and pids[-1] == "1"


def _started(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    fields = stat.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        raise ProcessLookupError(f"process {pid} has ended")
    return int(fields[19])
