"""What evidence carries beside the attestation document (SPEC 3.2 to 3.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from casemate import cbor, limits
from casemate.attestation._checks import (
    MODEL_NAME,
    VERSION_MAX,
    between,
    matching,
    parsed,
    require,
    sized,
)
from casemate.attestation.configuration import (
    PCR_CONFIGURATION,
    Configuration,
    KmsConfiguration,
    ServiceLimits,
    configuration_event,
    pcr16,
)
from casemate.errors import Code
from casemate.wire import HASH_BYTES, digest, label

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "PCR_CONFIGURATION",
    "Configuration",
    "InstanceConfig",
    "KeyConfig",
    "KmsConfiguration",
    "LogEntry",
    "ServiceLimits",
    "audience_hash",
    "callers_digest",
    "configuration_event",
    "encode_log",
    "key_id",
    "kms_user_data",
    "parse_log",
    "pcr16",
]

VERSION: Final = 1
SUITE: Final = {"kem": 0x647A, "kdf": 0x0001, "aead": 0x0002}  # SPEC 1.7
KEM_PUBLIC_BYTES: Final = 1216
INSTANCE_ID_BYTES: Final = 16
KEY_ID_BYTES: Final = 16
PUBLISHER_BYTES: Final = 32
RECEIPT_KEY_BYTES: Final = 32
FORMS: Final = ("nitro-enclave", "vm", "container", "process", "unsafe-process")

_TIME_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class KeyConfig:
    """A public key that data keys may be sealed to (SPEC 3.3); times in milliseconds."""

    public_key: bytes
    not_before: int
    not_after: int

    def __post_init__(self) -> None:
        code = Code.EVIDENCE_KEYS
        sized(self.public_key, KEM_PUBLIC_BYTES, KEM_PUBLIC_BYTES, code, "public_key")
        between(self.not_before, 0, _TIME_MAX, code, "not_before")
        between(self.not_after, 0, _TIME_MAX, code, "not_after")
        span = self.not_after - self.not_before
        require(
            0 < span <= limits.KEM_LIFETIME_MAX, code, "the key's lifetime is not 0 to 24 hours"
        )

    def valid_at(self, time: int) -> bool:
        """Whether ``time`` lies in ``not_before <= time < not_after``."""
        return self.not_before <= time < self.not_after

    def encode(self) -> bytes:
        """Return the deterministic CBOR of SPEC 3.3."""
        return cbor.encode(
            {
                "v": VERSION,
                **SUITE,
                "public_key": self.public_key,
                "not_before": self.not_before,
                "not_after": self.not_after,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> KeyConfig:
        """Parse ``data``; raises EvidenceError (EVIDENCE_KEYS) for anything but SPEC 3.3."""
        numbers = dict.fromkeys(("v", *SUITE, "not_before", "not_after"), int)
        with parsed(Code.EVIDENCE_KEYS):
            value = cbor.decode_map(data, {**numbers, "public_key": bytes})
        known = value.pop("v") == VERSION and all(
            value.pop(n) == number for n, number in SUITE.items()
        )
        require(known, Code.EVIDENCE_KEYS, "unknown version or suite")
        return cls(**value)


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """Which enclave this is (SPEC 3.4); ``boot_time`` in milliseconds of attested time.

    ``form`` is the enclave's own statement of how it is isolated; the measurements decide whether
    to believe it. ``receipt_key``, Ed25519, signs receipts and nothing else (SPEC 14).
    """

    instance_id: bytes
    boot_time: int
    form: str
    receipt_key: bytes

    def __post_init__(self) -> None:
        code = Code.EVIDENCE_INSTANCE
        sized(self.instance_id, INSTANCE_ID_BYTES, INSTANCE_ID_BYTES, code, "instance_id")
        require(any(self.instance_id), code, "instance_id is zero")
        between(self.boot_time, 0, _TIME_MAX, code, "boot_time")
        require(self.form in FORMS, code, "unknown form")
        sized(self.receipt_key, RECEIPT_KEY_BYTES, RECEIPT_KEY_BYTES, code, "receipt_key")

    def encode(self) -> bytes:
        """Return the deterministic CBOR of SPEC 3.4."""
        return cbor.encode(
            {
                "v": VERSION,
                "instance_id": self.instance_id,
                "boot_time": self.boot_time,
                "form": self.form,
                "receipt_key": self.receipt_key,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> InstanceConfig:
        """Parse ``data``; raises EvidenceError (EVIDENCE_INSTANCE) for anything but SPEC 3.4."""
        keys = {
            "v": int,
            "instance_id": bytes,
            "boot_time": int,
            "form": str,
            "receipt_key": bytes,
        }
        with parsed(Code.EVIDENCE_INSTANCE):
            value = cbor.decode_map(data, keys)
        require(value.pop("v") == VERSION, Code.EVIDENCE_INSTANCE, "unknown version")
        return cls(**value)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One load or unload of a model (SPEC 3.5).

    ``digest`` is the model digest of SPEC 8.4, ``callers`` a ``callers_digest``, both 48 bytes;
    ``time`` in milliseconds of attested time.
    """

    op: str
    name: str
    version: int
    digest: bytes
    publisher: bytes
    callers: bytes
    time: int

    def __post_init__(self) -> None:
        code = Code.EVIDENCE_MODELS
        require(self.op in {"load", "unload"}, code, "unknown operation in the log")
        matching(self.name, MODEL_NAME, code, "name of a model")
        between(self.version, 1, VERSION_MAX, code, "version")
        sized(self.digest, HASH_BYTES, HASH_BYTES, code, "digest")
        sized(self.publisher, PUBLISHER_BYTES, PUBLISHER_BYTES, code, "publisher")
        sized(self.callers, HASH_BYTES, HASH_BYTES, code, "callers")
        between(self.time, 0, _TIME_MAX, code, "time")


_ENTRY_KEYS: Final = {
    "op": str,
    "name": str,
    "version": int,
    "digest": bytes,
    "publisher": bytes,
    "callers": bytes,
    "time": int,
}


def encode_log(entries: Iterable[LogEntry]) -> bytes:
    """Return the deterministic CBOR of the measurement log (SPEC 3.5)."""
    return cbor.encode([{name: getattr(entry, name) for name in _ENTRY_KEYS} for entry in entries])


def parse_log(data: bytes) -> tuple[LogEntry, ...]:
    """Parse a measurement log; raises EvidenceError (EVIDENCE_MODELS) for anything but SPEC 3.5."""
    code = Code.EVIDENCE_MODELS
    with parsed(code):
        value = cbor.decode(data)
        require(isinstance(value, list), code, "the log is not an array")
        require(len(value) <= limits.MEASUREMENT_LOG_ENTRIES, code, "the log has too many entries")
        return tuple(LogEntry(**cbor.fields(entry, _ENTRY_KEYS)) for entry in value)


def key_id(key_config: bytes) -> bytes:
    """Return the identifier, 16 bytes, of an encoded key configuration (SPEC 3.3)."""
    return digest(key_config)[:KEY_ID_BYTES]


def audience_hash(audience: str) -> bytes:
    """Return the audience field of a request header, 32 bytes (SPEC 5.1)."""
    return digest(label("audience"), audience.encode())[:32]


def callers_digest(callers: Literal["any"] | Iterable[bytes]) -> bytes:
    """Return what the log says of a model's callers, 48 bytes (SPEC 3.5, 8.2)."""
    value = callers if isinstance(callers, str) else tuple(callers)
    return digest(label("callers"), cbor.encode(value))


def kms_user_data() -> bytes:
    """Return the ``user_data`` of a document made for KMS, 48 bytes (SPEC 3.6, 10.2)."""
    return digest(label("kms"))
