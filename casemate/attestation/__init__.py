"""Attestation: evidence, its verification and the policy it is judged by (SPEC 3, 4, 12)."""

from casemate.attestation.chain_cache import ChainCache
from casemate.attestation.document import UnverifiedDocument, VerifiedDocument, parse_document
from casemate.attestation.evidence import EvidenceBundle
from casemate.attestation.measurement import Measurement, measure_tree
from casemate.attestation.policy import AllowedModel, Release, TrustPolicy
from casemate.attestation.steps import STEPS, Step
from casemate.attestation.structures import (
    Configuration,
    InstanceConfig,
    KeyConfig,
    KmsConfiguration,
    LogEntry,
    ServiceLimits,
    audience_hash,
    callers_digest,
    configuration_event,
    encode_log,
    key_id,
    kms_user_data,
    parse_log,
    pcr16,
)
from casemate.attestation.verify import (
    DEBUG_RELEASE,
    VerifiedEvidence,
    verify_document,
    verify_evidence,
)

__all__ = [
    "DEBUG_RELEASE",
    "STEPS",
    "AllowedModel",
    "ChainCache",
    "Configuration",
    "EvidenceBundle",
    "InstanceConfig",
    "KeyConfig",
    "KmsConfiguration",
    "LogEntry",
    "Measurement",
    "Release",
    "ServiceLimits",
    "Step",
    "TrustPolicy",
    "UnverifiedDocument",
    "VerifiedDocument",
    "VerifiedEvidence",
    "audience_hash",
    "callers_digest",
    "configuration_event",
    "encode_log",
    "key_id",
    "kms_user_data",
    "measure_tree",
    "parse_document",
    "parse_log",
    "pcr16",
    "verify_document",
    "verify_evidence",
]
