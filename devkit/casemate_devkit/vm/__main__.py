"""``python -m casemate_devkit.vm``: boot an enclave image in QEMU, and play the hypervisor for it.

Prints one JSON object on standard output each time the enclave serves, and the enclave's events on
standard error; of whatever else the machine prints, only how many lines it was, and what it printed
before it served is in ``console.log`` of the run directory. There, too, ``enclave.sock`` leads to
the enclave, and the enclave's egress to ``egress.sock``. With ``--parent`` both ways lead through a
second machine, at context id 3, as on Nitro; ``past.sock`` goes past it, which the enclave must not
allow. Options and exit status are those of ``casemate-sim``. An emulated processor on a busy
machine can miss its timer and wait for ever: a machine that has not computed for a minute before it
serves is ended and started once more. One that computes has a quarter of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.attestation.cmdline import EGRESS_PORT, ENCLAVE_PORT, PARENT_CID
from casemate_devkit.errors import DevkitError
from casemate_devkit.pki import NitroPki
from casemate_devkit.supervision import DEBUG_WARNING, EventRelay, announce, keep_running, warn
from casemate_devkit.vm.machine import Machine
from casemate_devkit.vm.toolbox import Toolbox
from casemate_devkit.vm.vsock import Door, Vsock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BOOT_S: Final = 900.0  # 15 to 35 s; above 300 on a machine that stood still for most of them
BOOTS: Final = 2
HANGS_S: Final = 60.0
_COMPUTES: Final = 0.02  # of one processor; a boot takes all that it gets, and its pauses count
CID: Final = 16  # the first that a Nitro enclave may have
PARENT: Final = PARENT_CID["nitro-enclave"]
_CLEAN_END: Final = "STOPPED"
_NAME: Final = "casemate-vm"
_SAID_MAX: Final = 1000  # characters; where the kernel stands, or why the enclave failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m casemate_devkit.vm", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--eif", type=Path, required=True, help="the enclave image to boot")
    parser.add_argument(
        "--tools", type=Path, required=True, help="what casemate_devkit.vm.toolbox made"
    )
    parser.add_argument(
        "--pki", type=Path, required=True, help="directory of the simulated PKI; made if missing"
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="private directory for enclave.sock and egress.sock"
    )
    parser.add_argument(
        "--parent", type=Path, metavar="EIF", help="the image of a machine that is the parent"
    )
    parser.add_argument(
        "--debug", action="store_true", help="as nitro-cli's debug mode: PCR0, 1 and 2 are zero"
    )
    parser.add_argument(
        "--restart", action="store_true", help="boot a new machine when one ends by itself"
    )
    return parser


def _run(options: argparse.Namespace, events: EventRelay) -> int:
    """Boot one machine and wait for its end; the status is the enclave's own."""
    run = options.run.resolve()
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    pki = NitroPki.create(options.pki)
    with _booted(options, pki, run, events) as machine:
        announce(_describe(machine, pki, options))
        status = machine.wait()
    if status < 0:
        return status  # QEMU was killed; else it says nothing of how the enclave ended
    return 0 if events.last == _CLEAN_END else 1


@contextlib.contextmanager
def _booted(
    options: argparse.Namespace, pki: NitroPki, run: Path, events: EventRelay
) -> Iterator[Machine]:
    tools, console = Toolbox.open(options.tools), run / "console.log"
    for boot in range(1, BOOTS + 1):
        with contextlib.ExitStack() as resources:
            events.keep(resources.enter_context(console.open("wb", buffering=0)))
            vsock = resources.enter_context(Vsock(tools, [CID, PARENT]))
            machine = Machine(options.eif, pki, tools, debug=options.debug)
            if options.parent is None:
                near, reachable = CID, True
            else:
                quiet = resources.enter_context(EventRelay(io.StringIO()))
                parent = Machine(options.parent, pki, tools)
                near, reachable = PARENT, _boots(parent, vsock, PARENT, quiet, resources)
            vsock.way_out(near, EGRESS_PORT, run / "egress.sock")
            if reachable and _boots(machine, vsock, CID, events, resources):
                ways = {CID: "past.sock", near: "enclave.sock"}  # one, where there is no parent
                for cid, name in ways.items():
                    resources.enter_context(Door(run / name, vsock.way_in(cid), ENCLAVE_PORT))
                yield machine
                return
        warn(f"{_NAME}: boot {boot} of {BOOTS}: nothing served, last event {events.last or 'none'}")
    said = console.read_text(errors="replace").strip()[-_SAID_MAX:] or "nothing"
    raise DevkitError(f"the image did not boot in {BOOTS} tries; {console} says: {said}")


def _boots(
    machine: Machine, vsock: Vsock, cid: int, events: EventRelay, resources: contextlib.ExitStack
) -> bool:
    """Whether a machine serves in time; it runs until ``resources`` end."""
    machine.boot(vsock.device(cid), events.stream)
    resources.callback(machine.stop)
    return serves(machine, events)


def serves(machine: Machine, events: EventRelay) -> bool:
    """Wait until the enclave serves; False if it ended, hangs, or took longer than ``BOOT_S``."""
    now = time.monotonic()
    deadline = now + BOOT_S
    looked, computed_s = now, machine.processor_s()
    while not events.started.wait(0.2):
        now = time.monotonic()
        if not machine.running() or now > deadline:
            return False
        if now - looked > HANGS_S:
            if machine.processor_s() - computed_s < _COMPUTES * (now - looked):
                return False
            looked, computed_s = now, machine.processor_s()
    return True


def _describe(machine: Machine, pki: NitroPki, options: argparse.Namespace) -> str:
    measurement = machine.measurement
    return json.dumps(
        {
            "pid": machine.pid,
            "pcr0": measurement.pcr0.hex(),
            "pcr1": measurement.pcr1.hex(),
            "pcr2": measurement.pcr2.hex(),
            "root_sha256": pki.root_sha256.hex(),
            "module_id": machine.nsm.module_id,
            "form": "vm" if options.parent is None else "nitro-enclave",
            "debug": options.debug,
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.debug:
        warn(DEBUG_WARNING)
    return keep_running(_NAME, lambda events: _run(options, events), restart=options.restart)


if __name__ == "__main__":
    sys.exit(main())
