"""``casemate-nsm``: the hypervisor's part for an enclave that is a container.

It measures its own copy of the enclave image's file system, answers on a unix socket, and gives
each start of the enclave a fresh register bank. Only process 1 of a container is answered, and only
one at a time: what else runs in the enclave's container gets no document (THREATS A40). It must see
the machine's processes (``pid: host``) to know which one asks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.channel import UnixAddress, listen
from casemate.errors import CasemateError
from casemate_devkit.compose.bank import Boot
from casemate_devkit.compose.peers import Peer
from casemate_devkit.enclave_process import measure
from casemate_devkit.errors import DevkitError
from casemate_devkit.nsm import REQUEST_MAX, SimulatedNsm, boot_registers
from casemate_devkit.nsm_server import read_exactly
from casemate_devkit.pki import NitroPki

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.attestation.measurement import Measurement

FORM: Final = "container"
_LENGTH: Final = struct.Struct(">I")
_EXCHANGE_S: Final = 10.0
_CONNECTIONS_MAX: Final = 16
_STATE: Final = "bank.json"


class ContainerModule:
    """Serves the module of whichever enclave runs; ``state`` is where its bank is kept."""

    def __init__(self, pki: NitroPki, measurement: Measurement, state: Path) -> None:
        self._pki = pki
        self._measurement = measurement
        self._state = state
        self._mutex = threading.Lock()
        self._boot = Boot.load(state, pki)
        self._slots = threading.BoundedSemaphore(_CONNECTIONS_MAX)

    def serve(self, listener: socket.socket) -> None:
        """Answer until the listener is closed."""
        while True:
            try:
                channel, _ = listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                channel.close()
                continue
            threading.Thread(target=self._answer, args=(channel,), name="nsm", daemon=True).start()

    def _answer(self, channel: socket.socket) -> None:
        with channel, contextlib.suppress(OSError, EOFError):
            try:
                channel.settimeout(_EXCHANGE_S)
                self._exchange(channel)
            finally:
                self._slots.release()

    def _exchange(self, channel: socket.socket) -> None:
        (length,) = _LENGTH.unpack(read_exactly(channel, _LENGTH.size))
        if length > REQUEST_MAX:
            raise EOFError  # the device refuses such a write
        request = read_exactly(channel, length)
        with self._mutex:
            boot = self.admit(Peer.of(channel))
            before = boot.nsm.registers()
            answer = boot.nsm.handle(request)
            if boot.nsm.registers() != before:
                boot.save(self._state)
        channel.sendall(_LENGTH.pack(len(answer)) + answer)

    def admit(self, peer: Peer) -> Boot:
        """Return the boot that ``peer`` is, a new one if its predecessor ended; raises EOFError."""
        if self._boot is not None and self._boot.peer == peer:
            return self._boot
        if not peer.is_first():
            _say("refused", reason="not the first process of a container")
            raise EOFError
        if self._boot is not None and self._boot.peer.runs():
            _say("refused", reason="another enclave runs")
            raise EOFError
        registers = boot_registers(self._measurement, self._pki.instance_id)
        self._boot = Boot(peer, SimulatedNsm(self._pki, registers))
        self._boot.save(self._state)
        _say("boot", module_id=self._boot.nsm.module_id)
        return self._boot


def _say(event: str, **facts: str) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; 1 if the tree cannot be measured or the socket not be made."""
    parser = argparse.ArgumentParser(
        prog="casemate-nsm", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--tree", type=Path, required=True, help="the enclave image's file system")
    parser.add_argument(
        "--pki", type=Path, required=True, help="the simulated PKI; made if missing"
    )
    parser.add_argument("--socket", type=Path, required=True, help="where the enclave asks")
    options = parser.parse_args(arguments)
    try:
        pki = NitroPki.create(options.pki)
        measurement = measure(options.tree, FORM)
        module = ContainerModule(pki, measurement, options.pki / _STATE)
        listener = listen(UnixAddress(str(options.socket)))
    except (DevkitError, CasemateError, OSError) as error:
        print(f"casemate-nsm: {error}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: listener.shutdown(socket.SHUT_RDWR))
    _say("ready", pcr0=measurement.pcr0.hex(), root_sha256=pki.root_sha256.hex())
    module.serve(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
