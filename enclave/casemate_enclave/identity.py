"""What the enclave says about itself, bound by one attestation document (SPEC 3)."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from casemate import limits
from casemate.attestation.document import parse_document
from casemate.attestation.evidence import EvidenceBundle
from casemate.attestation.structures import (
    PCR_CONFIGURATION,
    InstanceConfig,
    LogEntry,
    configuration_event,
    encode_log,
    pcr16,
)
from casemate.errors import CasemateError, Code
from casemate.wire import digest

if TYPE_CHECKING:
    from casemate_enclave.clock import AttestedClock
    from casemate_enclave.keys import KeyRing
    from casemate_enclave.nsm import Nsm

PLATFORM = "nitro-enclave"
_INSTANCE_ID_BYTES = 16
_UNTOUCHED = (False, bytes(limits.PCR_BYTES))


def bind_configuration(nsm: Nsm, configuration: bytes) -> bytes:
    """Extend PCR16 with the configuration, lock it, and return its value (SPEC 3.2).

    Raises CasemateError if the register was touched before, or does not end as it must. The
    enclave is then of no use: its evidence could never verify.
    """
    if nsm.describe_pcr(PCR_CONFIGURATION) != _UNTOUCHED:
        raise CasemateError(Code.INTERNAL, "PCR16 is not in its initial state")
    nsm.extend_pcr(PCR_CONFIGURATION, configuration_event(configuration))
    nsm.lock_pcr(PCR_CONFIGURATION)
    expected = pcr16(configuration)
    if nsm.describe_pcr(PCR_CONFIGURATION) != (True, expected):
        raise CasemateError(Code.INTERNAL, "PCR16 does not hold the configuration")
    return expected


class MeasurementLog:
    """Loads and unloads, in order; thread-safe (SPEC 3.5)."""

    def __init__(self, capacity: int = limits.MEASUREMENT_LOG_ENTRIES) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._entries: list[LogEntry] = []
        self._loaded = 0

    def append(self, *entries: LogEntry) -> None:
        """Log ``entries`` at once: evidence shows all of them or none.

        Room for unloading every loaded model is always kept; raises CasemateError(OVERLOADED) for
        a load that would take it.
        """
        loads = sum(entry.op == "load" for entry in entries)
        with self._lock:
            loaded = self._loaded + 2 * loads - len(entries)
            if loads and len(self._entries) + len(entries) + loaded > self._capacity:
                raise CasemateError(
                    Code.OVERLOADED, "the measurement log is full: restart the enclave"
                )
            self._entries += entries
            self._loaded = loaded

    def encode(self) -> bytes:
        """The log as it stands, as in evidence."""
        with self._lock:
            return encode_log(self._entries)


class Identity:
    """The configured enclave's evidence; thread-safe."""

    def __init__(  # noqa: PLR0917 - what evidence is made of
        self,
        nsm: Nsm,
        clock: AttestedClock,
        keys: KeyRing,
        log: MeasurementLog,
        configuration: bytes,
        instance: InstanceConfig,
    ) -> None:
        self._nsm = nsm
        self._clock = clock
        self._keys = keys
        self._log = log
        self._configuration = configuration
        self._instance = instance.encode()
        self.instance_id = instance.instance_id
        self.instance_digest = digest(self._instance)

    def evidence(self, nonce: bytes | None) -> bytes:
        """Return an ``Evidence`` protobuf with a fresh document; ``nonce`` as given, or null.

        Raises CasemateError(UNAVAILABLE) when the security module does not answer.
        """
        # The snapshot of SPEC 3.6: whatever changes from here on, these bytes do not.
        bundle = EvidenceBundle(
            platform=PLATFORM,
            attestation_document=b"",
            configuration=self._configuration,
            key_configs=self._keys.published(),
            instance_config=self._instance,
            measurement_log=self._log.encode(),
        )
        document = self._nsm.attest(public_key=None, user_data=bundle.user_data(), nonce=nonce)
        self._clock.observe(parse_document(document).timestamp)
        return replace(bundle, attestation_document=document).serialize()


def new_instance(boot_time: int, form: str, receipt_key: bytes) -> InstanceConfig:
    """Give this enclave its random name; ``boot_time`` is the device's statement at boot."""
    return InstanceConfig(os.urandom(_INSTANCE_ID_BYTES), boot_time, form, receipt_key)
