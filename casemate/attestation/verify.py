"""Verification of evidence: the steps of SPEC 3.8, in their order.

This is the only place where a document becomes a VerifiedDocument and a bundle VerifiedEvidence.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from casemate.attestation import appraisal
from casemate.attestation._checks import require
from casemate.attestation.chain import verify_chain
from casemate.attestation.cose import (
    SIGNATURE_BYTES,
    CoseSign1,
    check_algorithm,
    check_document_size,
    parse_cose,
)
from casemate.attestation.document import (
    DocumentFields,
    UnverifiedDocument,
    VerifiedDocument,
    parse_payload,
)
from casemate.attestation.steps import Run, Step
from casemate.errors import Code, EvidenceError
from casemate.wire import digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.attestation.chain_cache import ChainCache
    from casemate.attestation.evidence import EvidenceBundle
    from casemate.attestation.policy import TrustPolicy
    from casemate.attestation.structures import Configuration, InstanceConfig, KeyConfig, LogEntry

DEBUG_RELEASE: Final = "(debug)"  # no release of a policy can have this name

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VerifiedEvidence:
    """Evidence that passed every step of SPEC 3.8 at ``verified_at`` (milliseconds).

    ``release`` is the name of the accepted release, or ``(debug)`` for an enclave in debug mode
    under a policy with ``allow_debug``: then nothing is known of the code that runs there.
    """

    bundle: EvidenceBundle
    document: VerifiedDocument
    configuration: Configuration
    key_configs: tuple[KeyConfig, ...]
    instance: InstanceConfig
    log: tuple[LogEntry, ...]
    release: str
    verified_at: int

    @property
    def current_key(self) -> tuple[bytes, KeyConfig]:
        """The key to seal to, encoded and parsed: the last one valid at the document's time."""
        listed = zip(self.bundle.key_configs, self.key_configs, strict=True)
        return [(raw, key) for raw, key in listed if key.valid_at(self.document.timestamp)][-1]

    @property
    def instance_digest(self) -> bytes:
        """H(instance_config), 48 bytes: what an answer of this enclave names (SPEC 5.7)."""
        return digest(self.bundle.instance_config)


def verify_evidence(
    bundle: EvidenceBundle,
    policy: TrustPolicy,
    *,
    nonce: bytes | None,
    now: int,
    observe: Callable[[Step], None] | None = None,
    chains: ChainCache | None = None,
) -> VerifiedEvidence:
    """Return verified evidence, or raise EvidenceError with the code of the first failed step.

    ``nonce`` is the one issued for this evidence, 16 to 64 bytes and used once, or None if none
    was, which a policy that wants fresh evidence refuses. ``now`` is the present in milliseconds;
    another time is for archives only, since it brings expired certificates back to life.
    ``observe`` is called with the report of each step. ``chains`` spares the signatures of
    certificates seen before; a document's own signature and all lifetimes are checked each time.
    """
    run = Run(observe)
    run(1, bundle.check_sizes)
    cose = run(2, parse_cose, bundle.attestation_document)
    run(3, check_algorithm, cose)
    claimed = run(4, parse_payload, cose)
    run(5, appraisal.check_platform, bundle, claimed, policy)
    run(6, check_root, claimed, policy.roots)
    leaf = run(7, verify_chain, claimed.chain, now, chains)
    document = run(8, check_signature, claimed, leaf)
    run(9, appraisal.check_age, document, policy.maximum_age_seconds, now)
    run(10, appraisal.check_nonce, document, policy, nonce)
    debug = run(11, appraisal.check_debug, document, policy)
    if debug:
        _log.warning("allow_debug: accepted an enclave in debug mode, whose memory is readable")
        run.skip(12, "debug mode: the registers are zero and say nothing")
        candidates = policy.accepted
    else:
        candidates = run(12, appraisal.check_measurements, document, policy)
    configuration, release = run(
        13, appraisal.check_configuration, document, bundle.configuration, candidates
    )
    run(14, appraisal.check_binding, document, bundle)
    keys = run(15, appraisal.check_keys, bundle.key_configs, document.timestamp)
    instance = run(16, appraisal.check_instance, bundle.instance_config, document.timestamp)
    run(17, appraisal.check_audience, configuration, policy.audience)
    log = run(18, appraisal.check_models, bundle.measurement_log, policy.models)
    return VerifiedEvidence(
        bundle=bundle,
        document=document,
        configuration=configuration,
        key_configs=keys,
        instance=instance,
        log=log,
        release=DEBUG_RELEASE if debug else release.name,
        verified_at=now,
    )


def verify_document(
    data: bytes, *, roots: frozenset[bytes], now: int, chains: ChainCache | None = None
) -> VerifiedDocument:
    """Return a document whose chain ends in ``roots`` and whose signature holds: steps 1-4, 6-8.

    ``roots`` are SHA-256 digests of DER, ``now`` is in milliseconds, ``chains`` as above. This says
    who signed, not what: the caller still judges ``pcr_field``, the registers, the age and
    everything else. Raises EvidenceError with the code of the first failed step.
    """
    check_document_size(data)
    cose = parse_cose(data)
    check_algorithm(cose)
    claimed = parse_payload(cose)
    check_root(claimed, roots)
    leaf = verify_chain(claimed.chain, now, chains)
    return check_signature(claimed, leaf)


def check_root(document: UnverifiedDocument, roots: frozenset[bytes]) -> None:
    """Step 6: the first certificate, byte for byte, is a trust anchor."""
    anchored = hashlib.sha256(document.cabundle[0]).digest() in roots
    require(anchored, Code.EVIDENCE_ROOT, "the root certificate is not one of the policy's")


def check_signature(
    document: UnverifiedDocument, leaf: ec.EllipticCurvePublicKey
) -> VerifiedDocument:
    """Step 8: the leaf signed the received bytes.

    ECDSA signatures are malleable: a document with the twin signature ``(r, n - s)`` passes too.
    Whoever wants to see each document once keys on the nonce, never on the document's bytes.
    """
    half = SIGNATURE_BYTES // 2
    r, s = (
        int.from_bytes(part, "big")
        for part in (document.signature[:half], document.signature[half:])
    )
    signed = CoseSign1(document.protected, {}, document.payload, document.signature).signed_bytes()
    try:
        leaf.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        detail = "the document was not signed by its certificate"
        raise EvidenceError(Code.EVIDENCE_SIGNATURE, detail) from None
    return VerifiedDocument(
        **{field.name: getattr(document, field.name) for field in fields(DocumentFields)}
    )
