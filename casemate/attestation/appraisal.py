"""What the policy says of a document whose signature holds: steps 5 and 9 to 18 of SPEC 3.8.

Each function is one step: it returns what later steps need and raises EvidenceError with its code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.attestation._checks import require
from casemate.attestation.document import ENCLAVE_PCRS
from casemate.attestation.policy import FRESH, PLATFORM_NITRO_ENCLAVE
from casemate.attestation.structures import (
    PCR_CONFIGURATION,
    Configuration,
    InstanceConfig,
    KeyConfig,
    LogEntry,
    parse_log,
    pcr16,
)
from casemate.errors import Code, EvidenceError

if TYPE_CHECKING:
    from casemate.attestation.document import UnverifiedDocument, VerifiedDocument
    from casemate.attestation.evidence import EvidenceBundle
    from casemate.attestation.policy import AllowedModel, Release, TrustPolicy

IMAGE_PCRS: Final = (0, 1, 2)
_PCR_FIELD: Final = {PLATFORM_NITRO_ENCLAVE: ENCLAVE_PCRS}


def check_platform(
    bundle: EvidenceBundle, document: UnverifiedDocument, policy: TrustPolicy
) -> None:
    """Step 5: a NitroTPM document has registers that the owner of any instance can steer."""
    code = Code.EVIDENCE_PLATFORM
    require(bundle.platform == policy.platform, code, "the bundle is of another platform")
    expected = document.pcr_field == _PCR_FIELD[policy.platform]
    require(expected, code, f"the document's registers are {document.pcr_field}")


def check_age(document: VerifiedDocument, maximum_age_seconds: int, now: int) -> None:
    """Step 9: neither from the future nor older than the policy allows."""
    age = now - document.timestamp
    code = Code.EVIDENCE_AGE
    require(age >= -limits.CLOCK_SKEW, code, f"the document lies {-age} ms in the future")
    old = f"the document is {age} ms old, the policy allows {maximum_age_seconds} s"
    require(age <= maximum_age_seconds * 1000, code, old)


def check_nonce(document: VerifiedDocument, policy: TrustPolicy, nonce: bytes | None) -> None:
    """Step 10: absent, empty and equal are three different things."""
    code = Code.EVIDENCE_NONCE
    if nonce is None:
        require(policy.evidence != FRESH, code, "the policy wants fresh evidence: issue a nonce")
        require(document.nonce is None, code, "the document answers a nonce of somebody else")
        return
    check_issued_nonce(document, nonce)


def check_issued_nonce(document: VerifiedDocument, nonce: bytes) -> None:
    """Step 10 where ``nonce`` was issued: the document's is byte-equal to it."""
    code = Code.EVIDENCE_NONCE
    usable = limits.NONCE_MIN <= len(nonce) <= limits.NONCE_MAX
    require(usable, code, f"a nonce has {limits.NONCE_MIN} to {limits.NONCE_MAX} bytes")
    require(document.nonce is not None, code, "the document has no nonce")
    require(document.nonce == nonce, code, "the document has another nonce")


def check_debug(document: VerifiedDocument, policy: TrustPolicy) -> bool:
    """Step 11: return whether this is a debug-mode enclave, which only ``allow_debug`` accepts.

    In debug mode PCR0, 1 and 2 are zero, but PCR4 and with a role PCR3 are not.
    """
    code = Code.EVIDENCE_DEBUG
    missing = [f"PCR{index}" for index in IMAGE_PCRS if index not in document.pcrs]
    require(not missing, code, f"{', '.join(missing)} missing")
    zero = [f"PCR{index}" for index in IMAGE_PCRS if not any(document.pcrs[index])]
    debug = len(zero) == len(IMAGE_PCRS)
    require(not zero or (debug and policy.allow_debug), code, f"{', '.join(zero)} zero")
    return debug


def check_measurements(document: VerifiedDocument, policy: TrustPolicy) -> tuple[Release, ...]:
    """Step 12: return the accepted releases whose image registers all equal the document's.

    A release below the policy's minimum is recognised, so that the refusal can say so.
    """
    differing = {release: _differing(document, release) for release in policy.releases}
    matching = tuple(release for release, registers in differing.items() if not registers)
    if not matching:
        closest = min(differing, key=lambda release: len(differing[release]))
        names = " and ".join(f"PCR{index}" for index in differing[closest])
        verb = "differ" if len(differing[closest]) > 1 else "differs"
        detail = f"{names} {verb} from release {closest.name}"
        raise EvidenceError(Code.EVIDENCE_MEASUREMENTS, detail)
    accepted = tuple(release for release in matching if release in policy.accepted)
    old = f"release {matching[-1].name} is below the minimum, release {policy.minimum_release}"
    require(bool(accepted), Code.EVIDENCE_MEASUREMENTS, old)
    return accepted


def _differing(document: VerifiedDocument, release: Release) -> list[int]:
    return [index for index, value in release.image.items() if document.pcrs.get(index) != value]


def check_configuration(
    document: VerifiedDocument, configuration: bytes, releases: tuple[Release, ...]
) -> tuple[Configuration, Release]:
    """Step 13: return the configuration and the release, of ``releases``, that has its PCR16."""
    code = Code.EVIDENCE_CONFIGURATION
    register = document.pcrs.get(PCR_CONFIGURATION)
    require(register is not None, code, "PCR16 missing: the enclave is not configured")
    ours = register == pcr16(configuration)
    require(ours, code, "PCR16 is not that of the bundle's configuration")
    for release in releases:
        if release.pcr16 == register:
            return Configuration.parse(configuration), release
    names = ", ".join(release.name for release in releases)
    raise EvidenceError(code, f"PCR16 differs from release {names}")


def check_binding(document: VerifiedDocument, bundle: EvidenceBundle) -> None:
    """Step 14: the document speaks of exactly this bundle, and was made for evidence."""
    code = Code.EVIDENCE_BINDING
    require(document.public_key is None, code, "the document has a public key: it is not evidence")
    bound = document.user_data == bundle.user_data()
    require(bound, code, "user_data is not that of the bundle")


def check_keys(key_configs: tuple[bytes, ...], timestamp: int) -> tuple[KeyConfig, ...]:
    """Step 15: one or two key configurations, of which one is valid at the document's time."""
    code = Code.EVIDENCE_KEYS
    few = 1 <= len(key_configs) <= limits.KEY_CONFIGS_MAX
    require(few, code, f"{len(key_configs)} key configurations")
    keys = tuple(KeyConfig.parse(key_config) for key_config in key_configs)
    valid = any(key.valid_at(timestamp) for key in keys)
    require(valid, code, "no key is valid at the document's time")
    return keys


def check_instance(instance_config: bytes, timestamp: int) -> InstanceConfig:
    """Step 16: an instance that booted before it was attested."""
    instance = InstanceConfig.parse(instance_config)
    code = Code.EVIDENCE_INSTANCE
    require(instance.boot_time <= timestamp, code, "boot_time is later than the document")
    return instance


def check_audience(configuration: Configuration, audience: str) -> None:
    """Step 17: the service this client means."""
    code = Code.EVIDENCE_AUDIENCE
    require(configuration.audience == audience, code, "the enclave serves another audience")


def check_models(measurement_log: bytes, allowed: tuple[AllowedModel, ...]) -> tuple[LogEntry, ...]:
    """Step 18: every model ever loaded is allowed, also one unloaded since."""
    log = parse_log(measurement_log)
    for entry in log:
        load = entry.op == "load"
        known = any(model.allows(entry.name, entry.publisher, entry.digest) for model in allowed)
        detail = f"model {entry.name} version {entry.version} is not allowed"
        require(known or not load, Code.EVIDENCE_MODELS, detail)
    return log
