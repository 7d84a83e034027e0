"""The enclave's side of the spawner: starts and ends workers, and learns of their ends."""

from __future__ import annotations

import _thread
import contextlib
import itertools
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate import cbor, limits
from casemate.errors import CasemateError, Code
from casemate_enclave.sandbox import Confinement
from casemate_enclave.workers import packets

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_enclave.accelerators import Needs

    Ended = Callable[[int], None]

_GREETING_MAX = 4 * limits.KIB


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the spawner says once it is confined."""

    confinement: Confinement
    providers: tuple[str, ...]  # of this onnxruntime


class Spawner:
    """The spawner as the enclave has it; thread-safe."""

    def __init__(self, channel: socket.socket, lost: Callable[[], None]) -> None:
        """Await its greeting; ``lost`` is called if it ends. Raises CasemateError(INTERNAL)."""
        self._channel = channel
        self._lost = lost
        self._numbers = itertools.count(1)
        self._ended: dict[int, Ended] = {}
        self.greeting = self._greeted()
        threading.Thread(target=self._listen, name="workers", daemon=True).start()

    def _greeted(self) -> Greeting:
        self._channel.settimeout(limits.WORKER_START_S)
        try:
            landlock_abi, seccomp, providers = cbor.decode(self._channel.recv(_GREETING_MAX))
        except (OSError, cbor.CborError, ValueError):
            raise CasemateError(Code.INTERNAL, "there is no spawner of workers") from None
        self._channel.settimeout(None)
        return Greeting(Confinement(landlock_abi, seccomp), tuple(providers))

    def start(self, data_bytes: int, needs: Needs, ended: Ended) -> tuple[int, socket.socket]:
        """Start a worker that allocates ``data_bytes`` at most; return its number and control.

        ``ended`` is called once, with its exit status or less than zero, the signal that ended it;
        it must not block. Raises OSError.
        """
        ours, theirs = packets.pair()
        number = next(self._numbers)
        self._ended[number] = ended
        bits = packets.NEEDS_CODE * needs.code | packets.NEEDS_GPU * needs.gpu
        order = packets.ORDER.pack(packets.START, number, bits, data_bytes)
        with theirs:
            packets.send(self._channel, [order], theirs.fileno(), wait=True)
        return number, ours

    def kill(self, number: int, *, wait: bool = True) -> None:
        """End a worker for good, if it has not ended; takes no lock.

        Without ``wait`` it never blocks; where the spawner has much to do, a thread waits.
        """
        order = packets.ORDER.pack(packets.KILL, number, 0, 0)
        try:
            self._channel.send(order, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            with contextlib.suppress(RuntimeError):  # no thread to be had
                # Of all ways to start one this takes no lock: a finaliser may be what calls.
                _thread.start_new_thread(self.kill, (number,))
        except OSError:
            return  # there is no spawner any more, so no worker either

    def _listen(self) -> None:
        memory = bytearray(packets.ENDED.size)
        with contextlib.suppress(OSError):
            while self._channel.recv_into(memory) == packets.ENDED.size:
                number, status = packets.ENDED.unpack(memory)
                if (ended := self._ended.pop(number, None)) is not None:
                    ended(status)
        self._lost()
