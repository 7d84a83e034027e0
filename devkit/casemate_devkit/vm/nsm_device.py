"""The Nitro Security Module as a virtio device (id 33), served by the simulated module.

Linux's own driver (drivers/misc/nsm.c) makes ``/dev/nsm`` of it, so the enclave's kernel, its ioctl
and its limits are the real ones, and only what signs is simulated.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, Self

from casemate_devkit.vm.vhost_user import Session
from casemate_devkit.vm.virtqueue import GuestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from casemate_devkit.nsm import SimulatedNsm
    from casemate_devkit.vm.virtqueue import Chain, Virtqueue

VIRTIO_ID: Final = 33


class NsmDevice:
    """Pairs questions with the room for their answers; the driver queues them as two chains."""

    def __init__(self, nsm: SimulatedNsm) -> None:
        self._nsm = nsm
        self._questions: list[Chain] = []
        self._rooms: list[Chain] = []

    def serve(self, queue: Virtqueue, chains: Sequence[Chain]) -> bool:
        """Answer what can be answered."""
        for chain in chains:
            whole = bool(chain.request and chain.room)
            if whole:
                queue.give_back(chain, self._nsm.handle(chain.request))
            elif chain.request:
                self._questions.append(chain)
            else:
                self._rooms.append(chain)
        while self._questions and self._rooms:
            question, room = self._questions.pop(0), self._rooms.pop(0)
            queue.give_back(question)
            queue.give_back(room, self._nsm.handle(question.request))
        return bool(chains)


class NsmBackend:
    """Serves one virtual machine's module on a unix socket; a context manager.

    ``failed`` says that the guest, or QEMU, broke the rules of the queue: then the device is gone.
    """

    def __init__(self, nsm: SimulatedNsm, path: Path) -> None:
        self._device = NsmDevice(nsm)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._channel: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="nsm-device", daemon=True)
        self.failed = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for channel in (self._listener, self._channel):
            if channel is not None:
                with contextlib.suppress(OSError):
                    channel.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        try:
            self._channel, _ = self._listener.accept()
        except OSError:
            return
        with self._channel as channel:
            try:
                Session(channel, self._device).run()
            except (GuestError, OSError, ValueError, struct.error):
                self.failed = True
