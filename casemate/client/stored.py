"""Evidence and attestation documents from files: judged, with what such a verdict lacks."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate import limits
from casemate.attestation import EvidenceBundle, TrustPolicy, parse_document, verify_evidence
from casemate.attestation.archive import verify_kept
from casemate.attestation.measured import MeasuredDocument, verify_measured
from casemate.attestation.tpm_policy import evidence_policy
from casemate.client.recognise import Kind, recognise
from casemate.errors import CasemateError, Code, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casemate.attestation import Step, VerifiedEvidence
    from casemate.attestation.tpm_policy import TpmPolicy


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file held: a whole bundle, or a document alone."""

    bundle: EvidenceBundle | None
    document: bytes

    @classmethod
    def read(cls, path: Path) -> Stored:
        """Read a file; raises CasemateError if it holds neither."""
        try:
            with path.open("rb") as file:
                data = file.read(limits.EVIDENCE_MAX + 1)
        except OSError as error:
            raise CasemateError(Code.INVALID_ARGUMENT, f"{path}: {error.strerror}") from None
        match recognise(data):
            case Kind.DOCUMENT:
                return cls(None, data)
            case Kind.EVIDENCE:
                bundle = EvidenceBundle.parse(data)
                return cls(bundle, bundle.attestation_document)
            case None:
                raise EvidenceError(Code.MALFORMED, f"{path}: neither evidence nor a document")
            case kind:
                raise CasemateError(Code.INVALID_ARGUMENT, f"{path}: {kind}, not evidence")

    @property
    def timestamp(self) -> int:
        """The time that the document claims, in milliseconds; 0 if it cannot be parsed."""
        with contextlib.suppress(EvidenceError):
            return parse_document(self.document).timestamp
        return 0

    def judge(
        self,
        policy: TrustPolicy | TpmPolicy,
        *,
        nonce: bytes | None,
        now: int,
        observe: Callable[[Step], None],
    ) -> VerifiedEvidence | MeasuredDocument:
        """Verify at ``now`` (ms); raises EvidenceError with the first failed step's code.

        Without a ``nonce`` that the caller issued, step 10 is reported as skipped: then only the
        document's age says how fresh it is.
        """
        if self.bundle is None:
            return verify_measured(self.document, policy, nonce=nonce, now=now, observe=observe)
        trust = evidence_policy(policy)
        if nonce is not None:
            return verify_evidence(self.bundle, trust, nonce=nonce, now=now, observe=observe)
        return verify_kept(self.bundle, trust, now=now, observe=observe)
