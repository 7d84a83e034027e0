"""``casemate-sim``: start the enclave of a staged tree, and play the hypervisor for it.

Prints one JSON object on standard output each time the enclave started, and the enclave's events
on standard error. SIGTERM or SIGINT ends the enclave. Exit status: 0 when it was told to stop, 1
when the enclave could not be started, 3 when the enclave ended by itself (unless ``--restart``:
then a new one starts, after a pause of 1 to 30 seconds, measured anew, with a fresh bank).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from casemate_devkit import unsafe_form
from casemate_devkit.enclave_process import EnclaveProcess
from casemate_devkit.supervision import (
    CANNOT_START,
    DEBUG_WARNING,
    ENCLAVE_ENDED,
    announce,
    keep_running,
    warn,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate_devkit.supervision import EventRelay

__all__ = ["CANNOT_START", "ENCLAVE_ENDED", "EnclaveProcess", "main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="casemate-sim", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--tree", type=Path, required=True, help="the staged tree to measure and run"
    )
    parser.add_argument(
        "--pki", type=Path, required=True, help="directory of the simulated PKI; made if missing"
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="private directory for enclave.sock and egress.sock"
    )
    parser.add_argument(
        "--debug", action="store_true", help="as nitro-cli's debug mode: PCR0, 1 and 2 are zero"
    )
    parser.add_argument(
        "--restart", action="store_true", help="start a new enclave when one ends by itself"
    )
    parser.add_argument(
        "--unsafe-no-namespaces",
        action="store_true",
        help="run without isolation, measured differently",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="give the enclave this machine's GPUs; a tree made with --accelerator cuda only",
    )
    return parser


def _describe(enclave: EnclaveProcess, *, debug: bool) -> str:
    measurement = enclave.measurement
    return json.dumps(
        {
            "pid": enclave.pid,
            "pcr0": measurement.pcr0.hex(),
            "pcr1": measurement.pcr1.hex(),
            "pcr2": measurement.pcr2.hex(),
            "root_sha256": enclave.pki.root_sha256.hex(),
            "module_id": enclave.nsm.module_id,
            "form": enclave.form,
            "debug": debug,
        }
    )


def _run(options: argparse.Namespace, events: EventRelay) -> int:
    """Start one enclave, measured anew and with a bank of its own, and wait for its end."""
    with EnclaveProcess(
        options.tree,
        options.pki,
        options.run,
        debug=options.debug,
        unsafe_no_namespaces=options.unsafe_no_namespaces,
        gpu=options.gpu,
        stderr=events.stream,
    ) as enclave:
        announce(_describe(enclave, debug=options.debug))
        return enclave.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.unsafe_no_namespaces:
        warn(unsafe_form.WARNING)
    if options.debug:
        warn(DEBUG_WARNING)
    return keep_running(
        "casemate-sim", lambda events: _run(options, events), restart=options.restart
    )


if __name__ == "__main__":
    sys.exit(main())
