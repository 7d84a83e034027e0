"""A document without its bundle: which code runs, and nothing of what it does (SPEC 3.9)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate.attestation import appraisal
from casemate.attestation._checks import require
from casemate.attestation.chain import verify_chain
from casemate.attestation.cose import check_algorithm, check_document_size, parse_cose
from casemate.attestation.document import ENCLAVE_PCRS, TPM_PCRS, parse_payload
from casemate.attestation.policy import TrustPolicy
from casemate.attestation.steps import STEPS, Run, Step
from casemate.attestation.verify import DEBUG_RELEASE, check_root, check_signature
from casemate.errors import Code, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.attestation.document import UnverifiedDocument, VerifiedDocument
    from casemate.attestation.tpm_policy import TpmPolicy, TpmRelease

_LAST: Final = 12
_NO_BUNDLE: Final = "a document alone does not say"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MeasuredDocument:
    """A document that passed steps 1 to 12: who signed it, and which release was measured.

    Not evidence: nothing is known of configuration, keys, instance and models, so nothing may be
    sealed to whoever presented it. ``issued`` says whether the verifier had issued its nonce.
    """

    document: VerifiedDocument
    release: str
    issued: bool
    verified_at: int


def verify_measured(
    data: bytes,
    policy: TrustPolicy | TpmPolicy,
    *,
    nonce: bytes | None,
    now: int,
    observe: Callable[[Step], None] | None = None,
) -> MeasuredDocument:
    """Judge a document up to step 12, or raise EvidenceError with the first failed step's code.

    ``nonce`` is the one issued for this document; with None step 10 is reported as skipped, and
    only its age says how fresh the document is. ``now`` is in milliseconds.
    """
    run = Run(observe)
    run(1, check_document_size, data)
    cose = run(2, parse_cose, data)
    run(3, check_algorithm, cose)
    claimed = run(4, parse_payload, cose)
    run(5, _check_platform, claimed, policy)
    run(6, check_root, claimed, policy.roots)
    leaf = run(7, verify_chain, (*claimed.cabundle, claimed.certificate), now)
    document = run(8, check_signature, claimed, leaf)
    run(9, appraisal.check_age, document, policy.maximum_age_seconds, now)
    if nonce is None:
        run.skip(10, "no nonce of yours to compare with")
    else:
        run(10, appraisal.check_issued_nonce, document, nonce)
    if isinstance(policy, TrustPolicy):
        release = _enclave(run, document, policy)
    else:
        run.skip(11, "a NitroTPM has no debug mode")
        release = run(12, _check_boot, document, policy.releases)[0].name
    for number in range(_LAST + 1, len(STEPS) + 1):
        run.skip(number, _NO_BUNDLE)
    return MeasuredDocument(document, release, nonce is not None, now)


def _enclave(run: Run, document: VerifiedDocument, policy: TrustPolicy) -> str:
    if run(11, appraisal.check_debug, document, policy):
        _log.warning("allow_debug: accepted an enclave in debug mode, whose memory is readable")
        run.skip(12, "debug mode: the registers are zero and say nothing")
        return DEBUG_RELEASE
    return run(12, appraisal.check_measurements, document, policy)[0].name


def _check_platform(document: UnverifiedDocument, policy: TrustPolicy | TpmPolicy) -> None:
    """Step 5: the field of the registers is that of the policy's platform."""
    wanted = ENCLAVE_PCRS if isinstance(policy, TrustPolicy) else TPM_PCRS
    found = document.pcr_field
    detail = f"the document's registers are {found}, the policy is for {policy.platform}"
    require(found == wanted, Code.EVIDENCE_PLATFORM, detail)


def _check_boot(
    document: VerifiedDocument, releases: tuple[TpmRelease, ...]
) -> tuple[TpmRelease, ...]:
    """Step 12 for a NitroTPM: return the releases whose registers are all equal."""
    differing = {release.name: _differing(document, release) for release in releases}
    matching = tuple(release for release in releases if not differing[release.name])
    if not matching:
        name, registers = min(differing.items(), key=lambda item: len(item[1]))
        detail = f"{' and '.join(registers)} not as in release {name}"
        raise EvidenceError(Code.EVIDENCE_MEASUREMENTS, detail)
    return matching


def _differing(document: VerifiedDocument, release: TpmRelease) -> list[str]:
    expected = release.registers.items()
    return [f"PCR{index}" for index, value in expected if document.pcrs.get(index) != value]
