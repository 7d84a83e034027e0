"""The configuration: all that decides trust and is not code (SPEC 3.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from casemate import cbor, limits
from casemate.attestation._checks import (
    MODEL_NAME,
    VERSION_MAX,
    ascending,
    between,
    matching,
    parsed,
    require,
    sized,
)
from casemate.errors import Code
from casemate.wire import digest, label, lp

VERSION: Final = 1
PUBLISHER_BYTES: Final = 32
PARTITIONS: Final = ("aws", "aws-cn", "aws-us-gov")
CPU: Final = "CPUExecutionProvider"
PROVIDERS: Final = (
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
    "OpenVINOExecutionProvider",
    CPU,
)
PCR_CONFIGURATION: Final = 16
KEY_POLICY_VARIABLE: Final = "${"  # would make a key policy's condition say something else

_CODE: Final = Code.EVIDENCE_CONFIGURATION
_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]")
_MINIMUM_KEY: Final = re.compile(rf"[0-9a-f]{{64}}/{MODEL_NAME.pattern}")
_REGISTER_AT_BOOT: Final = bytes(limits.PCR_BYTES)
_KEYS: Final[dict[str, type | tuple[type, ...]]] = {
    "v": int,
    "audience": str,
    "publishers": list,
    "minimum_versions": dict,
    "kms": (dict, type(None)),
    "limits": dict,
    "providers": list,
}
_KMS_KEYS: Final = {"partition": str, "regions": list, "tls_roots": list}
_LIMIT_BOUNDS: Final = {
    "sessions": limits.SESSIONS_MAX,
    "models": limits.MODELS_MAX,
    "model_bytes": limits.MODEL_BYTES_MAX,
    "request_bytes": limits.REQUEST_MAX,
    "stream_bytes": limits.STREAM_BYTES_MAX,
    "lifetime": limits.LIFETIME_MAX,
    "drain": limits.DRAIN_MAX,
    "memory_bytes": limits.MODEL_BYTES_MAX,
    "run_bytes": limits.MODEL_BYTES_MAX,
    "run_ms": limits.FRAME_BUDGET_MAX,
    "model_requests": limits.MODEL_REQUESTS_MAX,
    "threads": limits.RUN_THREADS_MAX,
}


@dataclass(frozen=True, slots=True)
class KmsConfiguration:
    """Where keys may be released from: ``tls_roots`` are the only roots for TLS to KMS, as DER."""

    partition: str
    regions: tuple[str, ...]
    tls_roots: tuple[bytes, ...]

    def __post_init__(self) -> None:
        require(self.partition in PARTITIONS, _CODE, "unknown KMS partition")
        between(len(self.regions), 1, limits.KMS_REGIONS_MAX, _CODE, "KMS regions")
        for region in self.regions:
            matching(region, _REGION, _CODE, "KMS region")
        require(len(set(self.regions)) == len(self.regions), _CODE, "a KMS region is listed twice")
        between(len(self.tls_roots), 1, limits.TLS_ROOTS_MAX, _CODE, "TLS roots")
        for root in self.tls_roots:
            sized(root, 1, limits.TLS_ROOT_MAX, _CODE, "TLS root")

    @property
    def endpoints(self) -> dict[str, str]:
        """Host name of KMS for each region; the port is always 443."""
        suffix = "amazonaws.com.cn" if self.partition == "aws-cn" else "amazonaws.com"
        return {region: f"kms.{region}.{suffix}" for region in self.regions}


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Bounds of one enclave: sessions and models held at a time, sizes in bytes.

    ``lifetime``: milliseconds from its boot to its end at the latest; ``drain``: how long before
    that it takes no new session any more (SPEC 9.7).
    ``memory_bytes`` is what all loaded models may take together, ``run_bytes`` what all runs under
    way may; ``run_ms`` ends a run, ``model_requests`` is how many requests one model may hold,
    running or waiting, and ``threads`` how many threads one run uses.
    ``stream_bytes``: what the questions of all streams hold at a time, and so the largest of them.
    """

    sessions: int
    models: int
    model_bytes: int
    request_bytes: int
    lifetime: int = limits.LIFETIME_MAX
    drain: int = limits.DRAIN_MAX
    memory_bytes: int = 4 * limits.GIB
    run_bytes: int = limits.GIB
    run_ms: int = limits.FRAME_BUDGET_MAX
    model_requests: int = limits.MODEL_REQUESTS_MAX
    threads: int = 1
    stream_bytes: int = limits.STREAM_BYTES_DEFAULT

    def __post_init__(self) -> None:
        for name, bound in _LIMIT_BOUNDS.items():
            between(getattr(self, name), 1, bound, _CODE, f"limits.{name}")
        require(self.lifetime >= limits.LIFETIME_MIN, _CODE, "limits.lifetime is too short")
        require(self.drain < self.lifetime, _CODE, "limits.drain is not below the lifetime")


@dataclass(frozen=True, slots=True)
class Configuration:
    """The one configuration of an enclave, measured into PCR16.

    ``publishers`` are Ed25519 public keys of 32 bytes, ascending. ``minimum_versions`` maps
    ``<publisher in hex>/<model name>`` to the lowest version that may be loaded. Without ``kms``
    there is no attested key release. Construction checks every bound of SPEC 3.2 and raises
    EvidenceError (EVIDENCE_CONFIGURATION).
    """

    audience: str
    publishers: tuple[bytes, ...]
    minimum_versions: dict[str, int]
    kms: KmsConfiguration | None
    limits: ServiceLimits
    providers: tuple[str, ...] = (CPU,)

    def __post_init__(self) -> None:
        between(len(self.audience.encode()), 1, limits.AUDIENCE_MAX, _CODE, "bytes of audience")
        require(KEY_POLICY_VARIABLE not in self.audience, _CODE, "audience: a variable within")
        between(len(self.publishers), 1, limits.PUBLISHERS_MAX, _CODE, "publishers")
        for publisher in self.publishers:
            sized(publisher, PUBLISHER_BYTES, PUBLISHER_BYTES, _CODE, "publisher key")
        require(ascending(self.publishers), _CODE, "publishers are not strictly ascending")
        self._check_minimum_versions()
        between(len(self.providers), 1, len(PROVIDERS), _CODE, "execution providers")
        known = all(provider in PROVIDERS for provider in self.providers)
        require(known, _CODE, "unknown execution provider")
        twice = len(set(self.providers)) != len(self.providers)
        require(not twice, _CODE, "an execution provider is listed twice")
        # It takes what the others leave, so after it nothing would ever run.
        require(self.providers[-1] == CPU, _CODE, f"{CPU} is not the last")

    def _check_minimum_versions(self) -> None:
        between(
            len(self.minimum_versions), 0, limits.MINIMUM_VERSIONS_MAX, _CODE, "minimum versions"
        )
        for key, version in self.minimum_versions.items():
            matching(key, _MINIMUM_KEY, _CODE, "minimum version's <publisher>/<model>")
            between(version, 1, VERSION_MAX, _CODE, "minimum version")

    def encode(self) -> bytes:
        """Return the deterministic CBOR of SPEC 3.2."""
        kms = self.kms
        return cbor.encode(
            {
                "v": VERSION,
                "audience": self.audience,
                "publishers": self.publishers,
                "minimum_versions": self.minimum_versions,
                "kms": None if kms is None else {name: getattr(kms, name) for name in _KMS_KEYS},
                "limits": {name: getattr(self.limits, name) for name in _LIMIT_BOUNDS},
                "providers": self.providers,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Configuration:
        """Parse ``data``; raises EvidenceError (EVIDENCE_CONFIGURATION) if it breaks SPEC 3.2."""
        with parsed(_CODE):
            require(len(data) <= limits.CONFIGURATION_MAX, _CODE, "configuration is too large")
            value = cbor.decode_map(data, _KEYS)
            require(value["v"] == VERSION, _CODE, "unknown version")
            bounds = cbor.fields(value["limits"], dict.fromkeys(_LIMIT_BOUNDS, int))
            return cls(
                audience=value["audience"],
                publishers=tuple(value["publishers"]),
                minimum_versions=value["minimum_versions"],
                kms=_parse_kms(value["kms"]),
                limits=ServiceLimits(**bounds),
                providers=tuple(value["providers"]),
            )


def _parse_kms(value: cbor.Value) -> KmsConfiguration | None:
    if value is None:
        return None
    kms = cbor.fields(value, _KMS_KEYS)
    return KmsConfiguration(kms["partition"], tuple(kms["regions"]), tuple(kms["tls_roots"]))


def configuration_event(configuration: bytes) -> bytes:
    """Return what the enclave extends PCR16 with, 48 bytes, for encoded configuration."""
    return digest(label("config"), lp(configuration))


def pcr16(configuration: bytes) -> bytes:
    """Return the value of PCR16 after exactly one ``configuration_event``, 48 bytes."""
    return digest(_REGISTER_AT_BOOT, configuration_event(configuration))
