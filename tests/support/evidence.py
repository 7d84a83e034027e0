"""Evidence that verifies, made under the throw-away PKI, and the ways to spoil it."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.attestation import (
    AllowedModel,
    Configuration,
    EvidenceBundle,
    InstanceConfig,
    KeyConfig,
    LogEntry,
    Release,
    ServiceLimits,
    TrustPolicy,
    callers_digest,
    encode_log,
    verify_evidence,
)
from tests.support import nitro_pki
from tests.support.nitro_pki import NOW, Chain

if TYPE_CHECKING:
    from casemate.attestation import Step, VerifiedEvidence

AUDIENCE = "clinic.example/screening"
PUBLISHER = bytes(range(32))
NONCE = bytes(range(100, 132))
MODEL_DIGEST = b"\xaa" * 48
IMAGE = {0: b"\x10" * 48, 1: b"\x11" * 48, 2: b"\x12" * 48}
HOUR = 3_600_000

CONFIGURATION = Configuration(
    audience=AUDIENCE,
    publishers=(PUBLISHER,),
    minimum_versions={f"{PUBLISHER.hex()}/wdbc": 2},
    kms=None,
    limits=ServiceLimits(sessions=1024, models=4, model_bytes=1 << 30, request_bytes=1 << 20),
    providers=("CPUExecutionProvider",),
)
KEY = KeyConfig(bytes(range(256)) * 4 + bytes(192), NOW - HOUR, NOW + HOUR)
RECEIPTS = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
RECEIPT_KEY = RECEIPTS.public_key().public_bytes_raw()
INSTANCE = InstanceConfig(b"\x07" * 16, NOW - HOUR, "process", RECEIPT_KEY)
LOADED = LogEntry(
    "load", "wdbc", 2, MODEL_DIGEST, PUBLISHER, callers_digest("any"), NOW - HOUR // 2
)


@functools.cache
def chain() -> Chain:
    """One chain for all tests that do not change certificates."""
    return nitro_pki.issue(nitro_pki.real_shape())


def pcr16(configuration: bytes) -> bytes:
    """SPEC 3.2, written out."""
    prefix = b"casemate/v1 config\x00" + len(configuration).to_bytes(4, "big")
    event = hashlib.sha384(prefix + configuration).digest()
    return hashlib.sha384(bytes(48) + event).digest()


def pcrs(configuration: bytes | None = None, **changes: bytes) -> dict[int, bytes]:
    register = pcr16(CONFIGURATION.encode() if configuration is None else configuration)
    return nitro_pki.registers() | IMAGE | {16: register} | nitro_pki.registers_of(**changes)


def unsigned() -> EvidenceBundle:
    """A bundle that lacks its document."""
    return EvidenceBundle(
        platform="nitro-enclave",
        attestation_document=b"",
        configuration=CONFIGURATION.encode(),
        key_configs=(KEY.encode(),),
        instance_config=INSTANCE.encode(),
        measurement_log=encode_log([LOADED]),
        accelerator=(),
    )


def attested(bundle: EvidenceBundle, **fields: object) -> EvidenceBundle:
    """Give ``bundle`` a document that binds it; ``fields`` of the payload may say otherwise."""
    said: dict[str, object] = {
        "pcrs": pcrs(bundle.configuration),
        "user_data": bundle.user_data(),
        "nonce": NONCE,
    }
    document = nitro_pki.document(chain(), **(said | fields))
    return replace(bundle, attestation_document=document)


def good(**fields: object) -> EvidenceBundle:
    return attested(unsigned(), **fields)


def with_part(bundle: EvidenceBundle, part: str, data: bytes) -> EvidenceBundle:
    """Replace one part by its name."""
    return replace(bundle, **{part: data})  # type: ignore[arg-type]


RELEASE = Release("0.1.0", IMAGE[0], IMAGE[1], IMAGE[2], pcr16(CONFIGURATION.encode()))


def policy(**changes: object) -> TrustPolicy:
    fields: dict[str, object] = {
        "platform": "nitro-enclave",
        "audience": AUDIENCE,
        "roots": chain().roots,
        "evidence": "fresh",
        "maximum_age_seconds": 300,
        "allow_debug": False,
        "releases": (RELEASE,),
        "models": (AllowedModel("wdbc", PUBLISHER, None),),
    }
    return TrustPolicy(**(fields | changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Judged:
    """The result of a verification and the steps it reported."""

    evidence: VerifiedEvidence
    steps: list[Step]


def judge(
    bundle: EvidenceBundle,
    trusted: TrustPolicy | None = None,
    *,
    nonce: bytes | None = NONCE,
    now: int = NOW,
) -> Judged:
    steps: list[Step] = []
    trusted = policy() if trusted is None else trusted
    evidence = verify_evidence(bundle, trusted, nonce=nonce, now=now, observe=steps.append)
    return Judged(evidence, steps)
