"""What stands behind /dev/nitro_enclaves: a connection is an enclave, and ends with it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casemate_devkit.processes import Service

_LOOK_S = 0.1


class Hypervisor:
    """Serves ``path``; ``start`` starts one enclave. A context manager.

    ``image`` is the one that it boots, as AWS's boots what nitro-cli hands to it; ``enclaves`` are
    those started, in order.
    """

    def __init__(self, path: Path, image: bytes, start: Callable[[], Service]) -> None:
        self._image, self._start = image, start
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o660)  # as AWS's device: root's and the group's
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, name="hypervisor", daemon=True)
        self.enclaves: list[Service] = []
        self.refused: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for enclave in self.enclaves:
            enclave.stop()

    def running(self) -> list[Service]:
        return [enclave for enclave in self.enclaves if enclave.running()]

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._run, args=(channel,), daemon=True).start()

    def _run(self, channel: socket.socket) -> None:
        with channel, channel.makefile("rb") as stream:
            wanted = json.loads(stream.readline())
            if wanted["debug"] or stream.read(wanted["size"]) != self._image:
                self.refused.append("debug" if wanted["debug"] else "another image")
                return
            try:
                enclave = self._start()
            except DevkitError as error:
                self.refused.append(str(error))
                return
            self.enclaves.append(enclave)
            try:
                channel.sendall(b"+")
                channel.settimeout(_LOOK_S)
                _hold(channel, enclave)
            finally:
                enclave.stop()


def _hold(channel: socket.socket, enclave: Service) -> None:
    """Return when the enclave has ended, or whoever holds it has gone."""
    while enclave.running():
        with contextlib.suppress(TimeoutError):
            if not channel.recv(1):
                return
            time.sleep(_LOOK_S)
