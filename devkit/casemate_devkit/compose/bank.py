"""The register bank of the enclave that runs, kept so that it outlives this process.

A real module lives as long as its enclave. The simulated one is a process that may be restarted
while the enclave runs on, so what the enclave extended and locked must be found again.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from casemate_devkit.compose.peers import Peer
from casemate_devkit.nsm import Registers, SimulatedNsm

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Boot:
    """One start of an enclave: the process it is, and the module it was given."""

    peer: Peer
    nsm: SimulatedNsm

    def state(self) -> dict[str, Any]:
        """What ``restore`` takes."""
        registers = self.nsm.registers()
        return {
            "version": _VERSION,
            "machine": _machine(),
            "pid": self.peer.pid,
            "started": self.peer.started,
            "module_id": self.nsm.module_id,
            "values": [value.hex() for value in registers.values],
            "locked": sorted(registers.locked),
        }

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all, for its owner only."""
        draft = path.with_suffix(".draft")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(self.state(), file)
        draft.replace(path)

    @classmethod
    def load(cls, path: Path, pki: Any) -> Self | None:  # noqa: ANN401 - NitroPki
        """Return the boot of a process that still runs; None if there is none."""
        try:
            state = json.loads(path.read_text())
            peer = Peer(state["pid"], state["started"])
            known = state["version"] == _VERSION and state["machine"] == _machine()
            if not known or not peer.runs():
                return None
            values = tuple(bytes.fromhex(value) for value in state["values"])
            registers = Registers(values, frozenset(state["locked"]))
            return cls(peer, SimulatedNsm.resume(pki, registers, state["module_id"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _machine() -> str:
    """What changes when the machine boots: pids and start times begin anew."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
