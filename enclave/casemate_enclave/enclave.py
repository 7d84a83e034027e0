"""The enclave's life: unconfigured, then ready or failed for good; draining ends it (SPEC 9.3)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from casemate import cbor
from casemate.attestation.structures import Configuration
from casemate.errors import CasemateError, Code, EvidenceError
from casemate_enclave.events import Event
from casemate_kms.models import KeyReleaser

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_enclave.events import Journal
    from casemate_enclave.identity import Identity
    from casemate_enclave.keys import KeyRing
    from casemate_enclave.lifetime import Lifetime
    from casemate_enclave.loading import ModelLoader
    from casemate_enclave.registry import ModelRegistry
    from casemate_enclave.service import RequestService
    from casemate_enclave.stream_service import StreamService


class State(StrEnum):
    """States as frame type 8 names them."""

    UNCONFIGURED = "unconfigured"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Releaser(KeyReleaser, Protocol):
    """Attested key release, with the credentials that the host hands in for it."""

    def set_credentials(
        self,
        access_key_id: str,
        secret_access_key: str,
        session_token: str | None,
        expires: int | None,
    ) -> None:
        """Replace the credentials; raises KeyReleaseError(MALFORMED)."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a configured enclave consists of."""

    configuration: Configuration
    identity: Identity
    service: RequestService
    streams: StreamService
    models: ModelRegistry
    loader: ModelLoader
    kms: Releaser | None
    keys: KeyRing
    lifetime: Lifetime


class Enclave:
    """The state and the parts; thread-safe.

    ``assemble`` builds the parts from a configuration and touches nothing outside; ``bind``
    measures the configuration, once, and returns PCR16.
    """

    def __init__(
        self,
        *,
        form: str,
        assemble: Callable[[Configuration, bytes], Parts],
        bind: Callable[[bytes], bytes],
        journal: Journal,
    ) -> None:
        self.form = form
        self._assemble = assemble
        self._bind = bind
        self._journal = journal
        self._lock = threading.Lock()
        self._state = State.UNCONFIGURED
        self._parts: Parts | None = None

    @property
    def state(self) -> State:
        """The present state."""
        if self._parts is not None and self._parts.lifetime.draining:
            return State.DRAINING
        return self._state

    @property
    def parts(self) -> Parts:
        """The parts; raises CasemateError(NOT_CONFIGURED) unless ready."""
        if self._parts is None:
            raise CasemateError(Code.NOT_CONFIGURED, "the enclave is not configured")
        return self._parts

    def configure(self, encoded: bytes) -> bytes:
        """Take the one configuration and return PCR16.

        A configuration that cannot be used changes nothing. Once the register was touched, a
        failure is final: raises CasemateError, and the state is failed.
        """
        with self._lock:
            if self._state is not State.UNCONFIGURED:
                raise CasemateError(Code.ALREADY_CONFIGURED, "the enclave has its configuration")
            parts = self._assemble(_parse(encoded), encoded)
            try:
                register = self._bind(encoded)
            except BaseException:
                self._state = State.FAILED
                self._journal.emit(Event.FAILED)
                raise
            self._parts = parts
            self._state = State.READY
        self._journal.emit(Event.CONFIGURED)
        return register

    def drain(self, within: int) -> int:
        """Take no new session from now on; return when the enclave ends at the latest.

        ``within``: milliseconds. Raises CasemateError.
        """
        until = self.parts.lifetime.drain(within)
        self._journal.emit(Event.DRAINING)
        return until

    def over(self) -> bool:
        """Whether it is time to end; begins to drain when that is due. Raises CasemateError."""
        if self._parts is None:
            return False
        if self._parts.lifetime.due():
            self._journal.emit(Event.DRAINING)
        return self._parts.lifetime.over()

    def maintain(self, now: int) -> bool:
        """Renew what ages, if there is anything yet; True when there is a new key."""
        if self._parts is None:
            return False
        self._parts.service.expire(now)
        return self._parts.keys.rotate_if_due()

    def health(self) -> bytes:
        """The answer to frame type 8."""
        served = self._parts.models.served() if self._parts else ()
        models = [
            {
                "name": model.header.name,
                "version": model.header.version,
                "digest": model.digest,
                "ready": model.ready,
            }
            for model in served
        ]
        return cbor.encode({"state": self.state.value, "form": self.form, "models": models})


def _parse(encoded: bytes) -> Configuration:
    try:
        return Configuration.parse(encoded)
    except EvidenceError as error:
        raise CasemateError(Code.MALFORMED, error.detail) from None
