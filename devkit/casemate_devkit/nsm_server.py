"""The simulated module's device: a unix socket that answers one process and nobody else.

Real modules are reachable from inside their enclave only. Here the socket lies in a directory that
is closed to other users, and the kernel's word on the connecting process (SO_PEERCRED) decides;
without that a co-tenant could ask for documents with keys of its own (THREATS A40).
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from casemate.channel import UnixAddress, listen
from casemate_devkit.nsm import REQUEST_MAX

if TYPE_CHECKING:
    from casemate_devkit.nsm import SimulatedNsm

_LENGTH: Final = struct.Struct(">I")
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred
_ADMISSION_S: Final = 10.0  # how long an early connection waits for the launcher to name its child
_SILENCE_S: Final = 600.0  # the enclave asks at least once a minute (SPEC 6.5)


class NsmServer:
    """Serves ``nsm`` on ``directory / "nsm.sock"``; a context manager that removes all it made."""

    def __init__(self, nsm: SimulatedNsm) -> None:
        self._nsm = nsm
        self._private = Path(tempfile.mkdtemp(prefix="casemate-nsm-"))  # mode 0700
        # The enclave runs as another user and must be able to pass; the directory above is the
        # gate.
        self.directory = self._private / "nsm"
        self.directory.mkdir(mode=0o755)
        self._listener = listen(UnixAddress(str(self.directory / "nsm.sock")))
        self._peer: tuple[int, int] | None = None
        self._admitted = threading.Event()
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="nsm", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def admit(self, pid: int) -> None:
        """Name the one process, in this process's pid namespace, that may ask."""
        self._peer = (pid, _started(pid))
        self._admitted.set()

    def close(self) -> None:
        """Stop serving and remove the socket."""
        for channel in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        shutil.rmtree(self._private, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(channel,), name="nsm-peer", daemon=True
            ).start()

    def _serve(self, channel: socket.socket) -> None:
        with channel:
            if not self._is_enclave(channel):
                return
            channel.settimeout(_SILENCE_S)
            self._connections.add(channel)
            with contextlib.suppress(OSError, EOFError):
                while True:
                    self._exchange(channel)
            self._connections.discard(channel)

    def _is_enclave(self, channel: socket.socket) -> bool:
        pid, _, _ = _CREDENTIALS.unpack(
            channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        try:
            peer = (pid, _started(pid))
        except OSError:
            return False  # it has ended, and its pid may soon be another's
        return self._admitted.wait(_ADMISSION_S) and peer == self._peer

    def _exchange(self, channel: socket.socket) -> None:
        (length,) = _LENGTH.unpack(read_exactly(channel, _LENGTH.size))
        if length > REQUEST_MAX:
            raise EOFError  # the device refuses such a write; here nothing more can be framed
        answer = self._nsm.handle(read_exactly(channel, length))
        channel.sendall(_LENGTH.pack(len(answer)) + answer)


def _started(pid: int) -> int:
    """When the process started, in clock ticks since boot: with the pid it names one process."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
    return int(after_name.split()[19])


def read_exactly(channel: socket.socket, count: int) -> bytes:
    """Return ``count`` bytes; EOFError if the other side ends before."""
    data = bytearray()
    while len(data) < count:
        piece = channel.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
