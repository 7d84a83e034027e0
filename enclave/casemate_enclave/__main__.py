"""The enclave's process: hardened and confined first, then assembled, then open to the host."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from casemate.allocator import keep_freed_memory
from casemate.attestation.structures import FORMS
from casemate.channel import UnixAddress, VsockAddress, listen, parse_address
from casemate.errors import CasemateError
from casemate_enclave.events import Event, Journal
from casemate_enclave.hardening import (
    give_up_root,
    harden_process,
    silence_tracebacks,
    take_standard_error,
)
from casemate_enclave.sandbox import Confinement, confine_calls, confine_files, tree_paths
from casemate_enclave.workers.spawner import fork_spawner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.channel import Address

# Where the machine is the enclave's own, its wall clock is set from the device (TLS to KMS and the
# signatures of requests to it read that clock), and its randomness is stirred by it.
_OWN_MACHINE = frozenset({"nitro-enclave", "vm"})
# The one form without a root of its own.
_NO_ROOT = "unsafe-process"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, which is measured (SPEC 4.3)."""
    parser = argparse.ArgumentParser(prog="casemate-enclave", allow_abbrev=False)
    parser.add_argument("--listen", required=True, help="unix:PATH or vsock:CID:PORT")
    parser.add_argument("--egress", required=True, help="the host's egress proxy, likewise")
    parser.add_argument("--nsm", required=True, help="/dev/nsm, or unix:PATH")
    parser.add_argument("--form", required=True, choices=FORMS)
    return parser.parse_args(arguments)


def _confine_files(form: str, address: Address, nsm: str) -> int:
    root = _root(form)
    if root is None:
        return 0
    sockets = [os.path.dirname(address.path)] if isinstance(address, UnixAddress) else []  # noqa: PTH120
    devices = [nsm] if nsm.startswith("/") else []
    if form in _OWN_MACHINE:
        devices.append("/dev/urandom")
    return confine_files(tree_paths(root), sockets, devices)


def _root(form: str) -> str | None:
    """Where the staged tree lies; None where a checkout is run, unsafely, without one."""
    if form != _NO_ROOT:
        return "/"
    application = Path(__file__).resolve().parents[1]
    return str(application.parent) if application.name == "app" else None


def run(arguments: argparse.Namespace, journal: Journal) -> bool:
    """Serve until SIGTERM or the end of a drain; False if the kernel confines too little.

    Raises CasemateError or OSError when the enclave cannot start.
    """
    address = parse_address(arguments.listen)
    egress = parse_address(arguments.egress)
    owns_machine = arguments.form in _OWN_MACHINE
    workers = fork_spawner(_root(arguments.form), owns_machine=owns_machine)
    landlock_abi = _confine_files(arguments.form, address, arguments.nsm)

    # Only now: these imports start threads, which the confinement would not reach afterwards.
    from casemate_enclave.assembly import Assembly, kms_through  # noqa: PLC0415
    from casemate_enclave.clock import set_wall_clock  # noqa: PLC0415
    from casemate_enclave.dispatch import Dispatcher  # noqa: PLC0415
    from casemate_enclave.nsm import open_nsm, seed_kernel  # noqa: PLC0415
    from casemate_enclave.server import Server  # noqa: PLC0415
    from casemate_enclave.workers.spawning import Spawner  # noqa: PLC0415

    nsm = open_nsm(arguments.nsm)
    if owns_machine:
        seed_kernel(nsm)
    spawner = Spawner(workers, lambda: _end_without_workers(journal))
    assembly = Assembly(nsm, arguments.form, journal, kms_through(egress), spawner)
    if owns_machine:
        set_wall_clock(assembly.clock.stated)
    listener = listen(address)
    if owns_machine:
        give_up_root()
    confinement = Confinement(landlock_abi, confine_calls(arguments.form))
    for confined in (confinement, spawner.greeting.confinement):
        if not confined.enough_for(arguments.form):
            return False
    stopped = threading.Event()
    parent = egress.cid if isinstance(egress, VsockAddress) else None
    server = Server(listener, Dispatcher(assembly.enclave, journal), journal, parent)
    assembly.maintain(stopped, server.finish)
    # What raises in a handler may be lost: Python's locks turn it into another error.
    signal.signal(signal.SIGTERM, lambda *_: server.end())
    if arguments.form == _NO_ROOT:
        journal.emit(Event.UNSAFE_FORM)
    journal.emit(Event.STARTED, count=landlock_abi)
    try:
        server.serve()
    finally:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # told again: without a grace
        stopped.set()
        server.stop()
        journal.emit(Event.STOPPED)
    return True


def _end_without_workers(journal: Journal) -> NoReturn:
    """End as after a crash: nothing can be loaded any more, and a new enclave can load all."""
    journal.emit(Event.FAILED)
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the enclave; returns the exit status."""
    parsed = parse_arguments(arguments)
    keep_freed_memory()
    journal = Journal(take_standard_error())
    silence_tracebacks(journal)
    try:
        harden_process()
        if run(parsed, journal):
            return 0
        journal.emit(Event.NOT_CONFINED)
    except CasemateError as error:
        journal.emit(Event.FAILED, code=error.code)
    except OSError as error:
        journal.emit(Event.FAILED, count=error.errno)
    return 1


if __name__ == "__main__":
    sys.exit(main())
