"""Puts the enclave together: the only place that chooses its parts.

Apart from ``__main__``, because importing this imports numpy, and the process is confined before
that.
"""

from __future__ import annotations

# TLS asks for this codec, and the codec for a machine-code module that could not be loaded later.
import encodings.idna  # noqa: F401
import threading
import time
from typing import TYPE_CHECKING

from casemate import limits
from casemate.envelope.replay import ReplayTable
from casemate.errors import CasemateError
from casemate_enclave.clock import AttestedClock, device_time
from casemate_enclave.enclave import Enclave, Parts
from casemate_enclave.events import Counter, Event, Step
from casemate_enclave.identity import Identity, MeasurementLog, bind_configuration, new_instance
from casemate_enclave.keys import KeyCache, KeyRing
from casemate_enclave.lifetime import Lifetime
from casemate_enclave.loading import ModelLoader
from casemate_enclave.objects import ObjectOpener
from casemate_enclave.receipts import ReceiptIssuer, ReceiptKey
from casemate_enclave.registry import ModelRegistry
from casemate_enclave.service import Bounds, RequestService
from casemate_enclave.stream_service import StreamService
from casemate_enclave.unwraps import Unwraps
from casemate_enclave.workers.runtime import WorkerRuntime
from casemate_kms.client import AttestedKms
from casemate_kms.egress import dialer

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.attestation.structures import Configuration, KmsConfiguration
    from casemate.channel import Address
    from casemate_enclave.enclave import Releaser
    from casemate_enclave.events import Journal
    from casemate_enclave.nsm import Nsm
    from casemate_enclave.workers.spawning import Spawner

    KmsFactory = Callable[[KmsConfiguration, Nsm, Callable[[], int]], Releaser]


def kms_through(egress: Address) -> KmsFactory:
    """Return what makes the client of KMS, which dials through the host's egress proxy."""
    return lambda configuration, nsm, now: AttestedKms(configuration, nsm, dialer(egress), now)


class Assembly:
    """Everything of one boot around one security module; raises CasemateError if that is silent."""

    def __init__(
        self, nsm: Nsm, form: str, journal: Journal, kms_factory: KmsFactory, spawner: Spawner
    ) -> None:
        self._nsm = nsm
        self._spawner = spawner
        self._journal = journal
        self._kms_factory = kms_factory
        self.clock = AttestedClock(lambda: device_time(nsm))
        self.clock.refresh()
        # The device's own statement: no session of an earlier boot starts after it (SPEC 6.2).
        self._receipts = ReceiptKey()
        self._instance = new_instance(self.clock.stated, form, self._receipts.public_bytes)
        self.enclave = Enclave(
            form=form,
            assemble=self._parts,
            bind=lambda encoded: bind_configuration(nsm, encoded),
            journal=journal,
        )

    def _parts(self, configuration: Configuration, encoded: bytes) -> Parts:
        bounds = configuration.limits
        keys, cache, log = KeyRing(self.clock), KeyCache(), MeasurementLog()
        if not cache.locked:
            self._journal.emit(Event.KEYS_NOT_LOCKED)
        # First what may refuse the configuration: a runtime starts a thread.
        kms = None
        if configuration.kms is not None:
            kms = self._kms_factory(configuration.kms, self._nsm, self.clock.now)
        runtime = WorkerRuntime(
            self._spawner,
            configuration.providers,
            self._journal,
            run_bytes=bounds.run_bytes,
            threads=bounds.threads,
        )
        models = ModelRegistry(
            *(runtime, log, self.clock, bounds),
            queued=lambda: self._journal.timed(Step.QUEUE),
            waited=self._journal.waited,
        )
        identity = Identity(self._nsm, self.clock, keys, log, encoded, self._instance)
        unwraps = Unwraps(kms)
        replay = ReplayTable(self._instance.boot_time, bounds.sessions)
        lifetime = Lifetime(self.clock, self._instance.boot_time, bounds, replay.live)
        receipts = ReceiptIssuer(self._receipts, identity, self.clock)
        service = RequestService(
            Bounds(configuration.audience, bounds.request_bytes),
            identity=identity,
            clock=self.clock,
            keys=keys,
            cache=cache,
            replay=replay,
            unwraps=unwraps,
            models=models,
            objects=ObjectOpener(configuration.audience, unwraps),
            journal=self._journal,
            lifetime=lifetime,
            receipts=receipts,
        )
        streams = StreamService(
            bounds.stream_bytes,
            requests=service,
            models=models,
            identity=identity,
            receipts=receipts,
            journal=self._journal,
        )
        return Parts(
            configuration=configuration,
            identity=identity,
            service=service,
            streams=streams,
            models=models,
            loader=ModelLoader(configuration, kms, models),
            kms=kms,
            keys=keys,
            lifetime=lifetime,
        )

    def maintain_once(self) -> None:
        """Ask the device for the time, renew keys, forget what is over; never raises."""
        try:
            self.clock.refresh()
            rotated = self.enclave.maintain(self.clock.now())
        except CasemateError as error:
            self._journal.count(Counter.DEVICE_FAILURES)
            self._journal.emit(Event.DEVICE_SILENT, code=error.code)
            return
        if rotated:
            self._journal.emit(Event.KEY_ROTATED)

    def over(self) -> bool:
        """Whether the enclave has nothing more to do (SPEC 9.7); never raises."""
        try:
            return self.enclave.over()
        except CasemateError:
            return False  # without a device nothing is answered, and the next look may know more

    def maintain(self, stopped: threading.Event, end: Callable[[], None]) -> None:
        """``maintain_once`` every minute, on a thread of its own, until ``stopped``.

        ``end`` is called once, when the enclave's life is over.
        """

        def work() -> None:
            due = time.monotonic() + limits.CLOCK_REFRESH / 1000
            while not stopped.wait(limits.LIFE_LOOK_S):
                if time.monotonic() >= due:
                    self.maintain_once()
                    due = time.monotonic() + limits.CLOCK_REFRESH / 1000
                if self.over():
                    end()
                    return

        threading.Thread(target=work, name="maintenance", daemon=True).start()
