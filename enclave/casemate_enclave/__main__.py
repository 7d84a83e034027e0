"""The enclave's process: the only place where its parts are chosen and put together."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from casemate import limits
from casemate.attestation.structures import FORMS
from casemate.channel import listen, parse_address
from casemate.envelope.replay import ReplayTable
from casemate.errors import CasemateError
from casemate_enclave.clock import AttestedClock, device_time, set_wall_clock
from casemate_enclave.dispatch import Dispatcher
from casemate_enclave.enclave import Enclave, Parts
from casemate_enclave.events import Counter, Event, Journal
from casemate_enclave.hardening import harden_process, silence_tracebacks
from casemate_enclave.identity import Identity, MeasurementLog, bind_configuration, new_instance
from casemate_enclave.keys import KeyCache, KeyRing
from casemate_enclave.loading import ModelLoader
from casemate_enclave.nsm import open_nsm
from casemate_enclave.registry import ModelRegistry
from casemate_enclave.runtime import OnnxRuntime
from casemate_enclave.server import Server
from casemate_enclave.service import Bounds, RequestService
from casemate_kms.client import AttestedKms
from casemate_kms.egress import dialer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.attestation.structures import Configuration, InstanceConfig
    from casemate.channel import Address
    from casemate_enclave.nsm import Nsm

# Where the machine is the enclave's own, its wall clock is set from the device: TLS and signatures to KMS read it.
_OWN_MACHINE = frozenset({"nitro-enclave", "vm"})


class Assembly:
    """Builds an enclave around one security module and one boot."""

    def __init__(self, nsm: Nsm, egress: Address, form: str, journal: Journal) -> None:
        self._nsm = nsm
        self._egress = egress
        self._form = form
        self._journal = journal
        self.clock = AttestedClock(lambda: device_time(nsm))
        self.clock.refresh()
        # The device's own statement: no session of an earlier boot starts after it (SPEC 6.2).
        self._instance: InstanceConfig = new_instance(self.clock.stated, form)

    def enclave(self) -> Enclave:
        """Return the unconfigured enclave."""
        return Enclave(
            form=self._form,
            assemble=self._parts,
            bind=lambda encoded: bind_configuration(self._nsm, encoded),
            journal=self._journal,
        )

    def _parts(self, configuration: Configuration, encoded: bytes) -> Parts:
        bounds = configuration.limits
        keys, cache, log = KeyRing(self.clock), KeyCache(), MeasurementLog()
        identity = Identity(
            nsm=self._nsm,
            clock=self.clock,
            keys=keys,
            log=log,
            configuration=encoded,
            instance=self._instance,
        )
        models = ModelRegistry(OnnxRuntime(configuration.providers), log, self.clock, bounds.models)
        kms = None
        if configuration.kms is not None:
            kms = AttestedKms(configuration.kms, self._nsm, dialer(self._egress), self.clock.now)
        service = RequestService(
            Bounds(configuration.audience, bounds.request_bytes),
            identity=identity,
            clock=self.clock,
            keys=keys,
            cache=cache,
            replay=ReplayTable(self._instance.boot_time, bounds.sessions),
            kms=kms,
            models=models,
        )

        def maintain() -> None:
            if keys.rotate_if_due():
                self._journal.emit(Event.KEY_ROTATED)
            cache.expire(self.clock.now())

        return Parts(
            configuration=configuration,
            identity=identity,
            service=service,
            models=models,
            loader=ModelLoader(configuration, kms, models),
            kms=kms,
            maintain=maintain,
        )


def maintain(
    clock: AttestedClock, enclave: Enclave, journal: Journal, stopped: threading.Event
) -> None:
    """Every minute until ``stopped``: ask the device for the time, renew keys, forget what is over."""
    while not stopped.wait(limits.CLOCK_REFRESH / 1000):
        try:
            clock.refresh()
        except CasemateError as error:
            journal.count(Counter.DEVICE_FAILURES)
            journal.emit(Event.DEVICE_SILENT, code=error.code)
            continue
        if enclave.form in _OWN_MACHINE:
            set_wall_clock(clock.now())
        enclave.maintain()


def run(arguments: argparse.Namespace, journal: Journal) -> None:
    """Serve until SIGTERM; raises CasemateError or OSError when the enclave cannot start."""
    nsm = open_nsm(arguments.nsm)
    assembly = Assembly(nsm, parse_address(arguments.egress), arguments.form, journal)
    if arguments.form in _OWN_MACHINE:
        set_wall_clock(assembly.clock.stated)
    enclave = assembly.enclave()
    server = Server(listen(parse_address(arguments.listen)), Dispatcher(enclave, journal), journal)
    stopped = threading.Event()
    work = (assembly.clock, enclave, journal, stopped)
    threading.Thread(target=maintain, args=work, name="maintenance", daemon=True).start()

    def end(*_: object) -> NoReturn:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    journal.emit(Event.STARTED)
    try:
        server.serve()
    finally:
        stopped.set()
        server.stop()
        journal.emit(Event.STOPPED)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, which is measured (SPEC 4.3)."""
    parser = argparse.ArgumentParser(prog="casemate-enclave", allow_abbrev=False)
    parser.add_argument("--listen", required=True, help="unix:PATH or vsock:CID:PORT")
    parser.add_argument("--egress", required=True, help="the host's egress proxy, likewise")
    parser.add_argument("--nsm", required=True, help="/dev/nsm, or unix:PATH")
    parser.add_argument("--form", required=True, choices=FORMS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the enclave; returns the exit status."""
    journal = Journal()
    parsed = parse_arguments(arguments)
    silence_tracebacks(journal)
    try:
        harden_process()
        run(parsed, journal)
    except CasemateError as error:
        journal.emit(Event.FAILED, code=error.code)
        return 1
    except OSError:
        journal.emit(Event.FAILED)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
