"""What the host currently knows of its enclave, as one immutable snapshot."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from casemate_host.control import LoadedModel


@dataclass(frozen=True, slots=True)
class HeldEvidence:
    """Evidence without a nonce that passed the host's own policy; clients verify it themselves.

    ``data``: the ``Evidence`` protobuf as the enclave made it; ``instance_digest``: 48 bytes,
    H(instance_config); ``verified_at``: milliseconds.
    """

    data: bytes
    instance_digest: bytes
    verified_at: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether the host serves; if not, ``code`` and ``detail`` say why.

    ``draining``: sessions that have begun are answered, and nobody is invited to begin one.
    """

    evidence: HeldEvidence | None
    code: Code
    detail: str
    models: tuple[LoadedModel, ...] = ()  # those that answer, while it serves
    draining: bool = False

    @property
    def serving(self) -> bool:
        """True only while the enclave answers and its evidence passed (SPEC 9.6)."""
        return self.evidence is not None and not self.draining


class Board:
    """Where the supervisor posts the standing and the front reads it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._standing = Standing(None, Code.UNAVAILABLE, "the enclave was not reached yet")

    @property
    def standing(self) -> Standing:
        """The latest snapshot."""
        return self._standing

    def post(self, standing: Standing) -> None:
        """Replace the snapshot."""
        with self._changed:
            self._standing = standing
            self._changed.notify_all()

    def wait_serving(self, timeout_s: float) -> bool:
        """Wait until the host serves; False when ``timeout_s`` passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._standing.serving, timeout_s)

    def invite(self, wanted: bytes | None) -> None:
        """Raise CasemateError(UNAVAILABLE) if whoever asks for evidence should go elsewhere.

        ``wanted``: the instance that has answered already, which is not for a new session.
        """
        if self._standing.draining and wanted is None:
            raise CasemateError(Code.UNAVAILABLE, self._standing.detail)

    def require(self) -> HeldEvidence:
        """Return the held evidence; raises CasemateError(UNAVAILABLE) if there is none."""
        standing = self._standing
        if standing.evidence is None:
            detail = f"not serving: {standing.code}: {standing.detail}"
            raise CasemateError(Code.UNAVAILABLE, detail)
        return standing.evidence
