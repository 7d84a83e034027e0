"""Evidence that was kept: judged without a nonce that the verifier issued (SPEC 3.9, 14.5)."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from casemate.attestation.document import parse_document
from casemate.attestation.verify import VerifiedEvidence, verify_evidence
from casemate.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.attestation.evidence import EvidenceBundle
    from casemate.attestation.policy import TrustPolicy
    from casemate.attestation.steps import Step

_NONCE_STEP: Final = 10


def verify_kept(
    bundle: EvidenceBundle,
    policy: TrustPolicy,
    *,
    now: int,
    observe: Callable[[Step], None] | None = None,
) -> VerifiedEvidence:
    """Verify as ``verify_evidence`` at ``now`` (ms), where no nonce of the verifier's is known.

    Step 10 is reported as skipped: the document's age alone says how fresh it is.
    """
    observed = None if observe is None else _unissued(observe)
    return verify_evidence(bundle, policy, nonce=_own_nonce(bundle), now=now, observe=observed)


def _own_nonce(bundle: EvidenceBundle) -> bytes | None:
    with contextlib.suppress(EvidenceError):
        return parse_document(bundle.attestation_document).nonce
    return None


def _unissued(observe: Callable[[Step], None]) -> Callable[[Step], None]:
    """Report step 10 as what it is where the document was held against its own nonce."""

    def observed(step: Step) -> None:
        if step.number == _NONCE_STEP and step.outcome == "passed":
            step = replace(step, outcome="skipped", detail="no nonce of yours to compare with")
        observe(step)

    return observed
