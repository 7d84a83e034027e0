"""Reason codes and the exceptions that carry them (SPEC 11).

A failed check raises; nothing returns ``True`` for "valid". ``str(error)`` never contains keys,
payloads or tensors: whoever raises one writes only names, sizes, indices and codes into it.
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Stable reason codes; the strings are the wire values."""

    # Outside the seal (SPEC 11.1)
    MALFORMED = "MALFORMED"
    UNSUPPORTED_VERSION = "UNSUPPORTED_VERSION"
    TOO_LARGE = "TOO_LARGE"
    WRONG_AUDIENCE = "WRONG_AUDIENCE"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    UNKNOWN_INSTANCE = "UNKNOWN_INSTANCE"
    STALE_SESSION = "STALE_SESSION"
    EXPIRED = "EXPIRED"
    OPEN_FAILED = "OPEN_FAILED"
    REPLAYED = "REPLAYED"
    OVERLOADED = "OVERLOADED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    UNAVAILABLE = "UNAVAILABLE"
    NOT_CONFIGURED = "NOT_CONFIGURED"
    ALREADY_CONFIGURED = "ALREADY_CONFIGURED"
    CLOCK_UNAVAILABLE = "CLOCK_UNAVAILABLE"
    KEY_RELEASE_DENIED = "KEY_RELEASE_DENIED"
    KEY_RELEASE_UNAVAILABLE = "KEY_RELEASE_UNAVAILABLE"
    KEY_RELEASE_INVALID = "KEY_RELEASE_INVALID"
    INTERNAL = "INTERNAL"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    # Sealed models (SPEC 8.3)
    MODEL_MALFORMED = "MODEL_MALFORMED"
    MODEL_PUBLISHER_UNKNOWN = "MODEL_PUBLISHER_UNKNOWN"
    MODEL_SIGNATURE_INVALID = "MODEL_SIGNATURE_INVALID"
    MODEL_VERSION_REVOKED = "MODEL_VERSION_REVOKED"
    MODEL_OPEN_FAILED = "MODEL_OPEN_FAILED"
    MODEL_REJECTED = "MODEL_REJECTED"
    # Inside the seal (SPEC 11.2)
    OK = "OK"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    CALLER_REFUSED = "CALLER_REFUSED"
    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_INPUT = "INVALID_INPUT"
    MODEL_FAILED = "MODEL_FAILED"
    # Sealed data (SPEC 8.7)
    OBJECT_MALFORMED = "OBJECT_MALFORMED"
    OBJECT_REFUSED = "OBJECT_REFUSED"
    OBJECT_OPEN_FAILED = "OBJECT_OPEN_FAILED"
    # Receipts (SPEC 14)
    RECEIPT_MALFORMED = "RECEIPT_MALFORMED"
    RECEIPT_EVIDENCE = "RECEIPT_EVIDENCE"
    RECEIPT_INSTANCE = "RECEIPT_INSTANCE"
    RECEIPT_SIGNATURE = "RECEIPT_SIGNATURE"
    RECEIPT_TIME = "RECEIPT_TIME"
    RECEIPT_REQUEST = "RECEIPT_REQUEST"
    RECEIPT_MODEL = "RECEIPT_MODEL"
    RECEIPT_QUESTION = "RECEIPT_QUESTION"
    RECEIPT_ANSWER = "RECEIPT_ANSWER"
    # Verification steps (SPEC 3.8)
    EVIDENCE_SIZE = "EVIDENCE_SIZE"
    EVIDENCE_COSE = "EVIDENCE_COSE"
    EVIDENCE_ALGORITHM = "EVIDENCE_ALGORITHM"
    EVIDENCE_PAYLOAD = "EVIDENCE_PAYLOAD"
    EVIDENCE_PLATFORM = "EVIDENCE_PLATFORM"
    EVIDENCE_ROOT = "EVIDENCE_ROOT"
    EVIDENCE_CHAIN = "EVIDENCE_CHAIN"
    EVIDENCE_SIGNATURE = "EVIDENCE_SIGNATURE"
    EVIDENCE_AGE = "EVIDENCE_AGE"
    EVIDENCE_NONCE = "EVIDENCE_NONCE"
    EVIDENCE_DEBUG = "EVIDENCE_DEBUG"
    EVIDENCE_MEASUREMENTS = "EVIDENCE_MEASUREMENTS"
    EVIDENCE_CONFIGURATION = "EVIDENCE_CONFIGURATION"
    EVIDENCE_BINDING = "EVIDENCE_BINDING"
    EVIDENCE_KEYS = "EVIDENCE_KEYS"
    EVIDENCE_INSTANCE = "EVIDENCE_INSTANCE"
    EVIDENCE_AUDIENCE = "EVIDENCE_AUDIENCE"
    EVIDENCE_MODELS = "EVIDENCE_MODELS"
    # On the client (SPEC 11.3, 12)
    POLICY_INVALID = "POLICY_INVALID"
    RELEASES_INVALID = "RELEASES_INVALID"
    ANSWER_OPEN_FAILED = "ANSWER_OPEN_FAILED"
    ANSWER_INSTANCE_UNKNOWN = "ANSWER_INSTANCE_UNKNOWN"
    KMS_POLICY_TOO_WIDE = "KMS_POLICY_TOO_WIDE"
    KMS_FAILED = "KMS_FAILED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    HOST_UNREACHABLE = "HOST_UNREACHABLE"


# What a host may truthfully say of a request (SPEC 11.1). Nothing else is believed from it: the
# other codes are an enclave's, inside the seal, or this side's own findings.
CLEAR_CODES = frozenset(
    {
        *(Code.MALFORMED, Code.UNSUPPORTED_VERSION, Code.TOO_LARGE, Code.WRONG_AUDIENCE),
        *(Code.UNKNOWN_KEY, Code.UNKNOWN_INSTANCE, Code.STALE_SESSION, Code.EXPIRED),
        *(Code.OPEN_FAILED, Code.REPLAYED, Code.OVERLOADED, Code.DEADLINE_EXCEEDED),
        *(Code.UNAVAILABLE, Code.NOT_CONFIGURED, Code.ALREADY_CONFIGURED, Code.CLOCK_UNAVAILABLE),
        *(Code.KEY_RELEASE_DENIED, Code.KEY_RELEASE_UNAVAILABLE, Code.KEY_RELEASE_INVALID),
        *(Code.INTERNAL, Code.UNAUTHENTICATED, Code.QUOTA_EXCEEDED),
    }
)


class CasemateError(Exception):
    """A refusal with a stable reason code; the base of every exception Casemate raises."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class EvidenceError(CasemateError):
    """Evidence failed a verification step (SPEC 3.8)."""


class EnvelopeError(CasemateError):
    """A sealed message was refused (SPEC 5, 6)."""


class ModelError(CasemateError):
    """A sealed model was refused (SPEC 8.3)."""


class ObjectError(CasemateError):
    """Sealed data was refused (SPEC 8.7)."""


class ReceiptError(CasemateError):
    """A receipt was refused (SPEC 14)."""


class KeyReleaseError(CasemateError):
    """KMS did not release a key, or its answer was refused (SPEC 10.3)."""


class PolicyError(CasemateError):
    """A trust policy or key policy was refused (SPEC 12)."""


class FrameError(CasemateError):
    """A frame or an address was refused, or the other side answered with an error (SPEC 9)."""


class RequestError(CasemateError):
    """A request failed; unless it is a SealedStatusError, on the host's word or this side's own.

    ``retry_after_s``: the seconds after which the host wants to be asked again, if it said so.
    """

    def __init__(self, code: Code, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(code, detail)
        self.retry_after_s = retry_after_s


class SealedStatusError(RequestError):
    """The verified enclave itself refused a request, inside the seal (SPEC 11.2)."""
