"""AF_VSOCK for virtual machines: vhost-device-vsock, and the way from it to the host's sockets.

On the host each machine's vsock is a unix socket: a connection to it that first says ``CONNECT
PORT`` reaches the guest's port, and the guest's connections to a port of its host arrive at the
socket's name with ``_PORT`` behind it. Machines of one device reach each other by context id, as an
enclave reaches its parent on Nitro.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from casemate.channel import UnixAddress, connect, listen
from casemate.errors import CasemateError
from casemate_devkit.vm import child
from casemate_host.splice import splice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate_devkit.vm.toolbox import Toolbox

_DIAL_S: Final = 20.0
_IDLE_S: Final = 3600.0
_ANSWER_MAX: Final = 64
# How much the host lets a guest send before it has taken it, and so the longest packet. A Linux of
# 2026 spreads a packet of more than 32 KiB over pages, and vhost-device-vsock 0.3 loses it: the
# connection stands still.
_WINDOW: Final = 28 << 10


class Vsock:
    """The device of some machines, by context id; a context manager."""

    def __init__(self, tools: Toolbox, cids: Sequence[int]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="casemate-vs-"))  # mode 0700, and short
        self._cids = cids
        self._tools = tools
        self._resources = contextlib.ExitStack()
        self._resources.callback(shutil.rmtree, self._folder, ignore_errors=True)

    def device(self, cid: int) -> Path:
        """The socket to which the machine's QEMU connects."""
        return self._folder / f"{cid}.device"

    def way_in(self, cid: int) -> Path:
        """The socket through which the host reaches the machine's ports."""
        return self._folder / f"{cid}"

    def way_out(self, cid: int, port: int, target: Path) -> None:
        """Lead the machine's connections to a port of the host's to the unix socket ``target``."""
        Path(f"{self.way_in(cid)}_{port}").symlink_to(target)

    def __enter__(self) -> Self:
        machines: list[str] = []
        for cid in self._cids:
            sockets = f"socket={self.device(cid)},uds-path={self.way_in(cid)}"
            machines += ("--vm", f"guest-cid={cid},{sockets},tx-buffer-size={_WINDOW}")
        log = self._resources.enter_context((self._folder / "log").open("wb"))
        with self._resources as resources:
            process = child.start([str(self._tools.vsock), *machines], output=log)
            resources.callback(child.end, process)
            for cid in self._cids:
                child.await_socket(self.device(cid), process)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()


def dial(way_in: Path, port: int) -> socket.socket:
    """Connect to a guest's port; raises OSError, or FrameError(UNAVAILABLE)."""
    channel = connect(UnixAddress(str(way_in)), _DIAL_S)
    try:
        channel.sendall(f"CONNECT {port}\n".encode())
        _expect_connected(channel, port)
    except BaseException:
        channel.close()
        raise
    return channel


def _expect_connected(channel: socket.socket, port: int) -> None:
    """Read the device's line, and no byte more: what follows is the guest's."""
    answer = b""
    while not answer.endswith(b"\n"):
        piece = channel.recv(1)
        if not piece or len(answer) > _ANSWER_MAX:
            raise ConnectionRefusedError(f"nobody listens on the guest's port {port}")
        answer += piece
    if not answer.startswith(b"OK "):
        raise ConnectionRefusedError(f"vsock: {answer!r}")


class Door:
    """A unix socket on the host that leads to a guest's port; a context manager."""

    def __init__(self, path: Path, way_in: Path, port: int) -> None:
        self._path, self._way_in, self._port = path, way_in, port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._listener = listen(UnixAddress(str(self._path)))
        self._thread = threading.Thread(target=self._accept, name="door", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            channels = [self._listener, *self._open]
        for channel in channels:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(near,), name="way", daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with (
            near,
            contextlib.suppress(OSError, CasemateError),
            dial(self._way_in, self._port) as far,
        ):
            with self._lock:
                self._open |= {near, far}
            try:
                splice(near, far, _IDLE_S)
            finally:
                with self._lock:
                    self._open -= {near, far}
