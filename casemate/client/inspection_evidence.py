"""Evidence and its parts, taken apart for people: nothing here is verified.

Each function returns JSON values; byte strings are lower-case hex. Raises EvidenceError for what
cannot be read.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from casemate.attestation import (
    Configuration,
    EvidenceBundle,
    InstanceConfig,
    KeyConfig,
    key_id,
    parse_document,
    parse_log,
    pcr16,
)
from casemate.attestation.details import moment
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from collections.abc import Callable

Facts = dict[str, Any]


def document(data: bytes) -> Facts:
    """Take an attestation document apart."""
    parsed = parse_document(data)
    zero = [index for index, value in sorted(parsed.pcrs.items()) if not any(value)]
    registers = {f"PCR{i}": value.hex() for i, value in sorted(parsed.pcrs.items()) if any(value)}
    return {
        "module_id": parsed.module_id,
        "timestamp": moment(parsed.timestamp),
        "platform": "nitrotpm" if parsed.pcr_field == "nitrotpm_pcrs" else "nitro-enclave",
        "debug_mode": parsed.pcr_field == "pcrs" and {0, 1, 2} <= set(zero),
        "public_key": hex_or_none(parsed.public_key),
        "user_data": hex_or_none(parsed.user_data),
        "nonce": hex_or_none(parsed.nonce),
        "registers": registers,
        "zero_registers": _ranges(zero),
        "certificates": [certificate(der) for der in (*parsed.cabundle, parsed.certificate)],
    }


def _ranges(indices: list[int]) -> str:
    """Write ascending numbers as ranges: ``3-15, 17``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"{run[0]}-{run[-1]}" if run[1:] else f"{run[0]}" for run in runs)


def certificate(der: bytes) -> Facts:
    """Name a certificate; one that cannot be read is named by its digest alone."""
    facts: Facts = {"sha256": hashlib.sha256(der).hexdigest()[:16]}
    try:
        parsed = x509.load_der_x509_certificate(der)
        facts["not_before"] = moment(int(parsed.not_valid_before_utc.timestamp()) * 1000)
        facts["not_after"] = moment(int(parsed.not_valid_after_utc.timestamp()) * 1000)
        names = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        facts["name"] = str(names[0].value) if names else parsed.subject.rfc4514_string()
    except Exception:  # noqa: BLE001 - the parser reads lazily and its errors have no common base
        facts["name"] = "(malformed)"
    return facts


def evidence(data: bytes) -> Facts:
    """Take a bundle apart; a part that cannot be read says why, and the others are shown."""
    bundle = EvidenceBundle.parse(data)
    return {
        "platform": bundle.platform,
        "document": _part(document, bundle.attestation_document),
        "configuration": _part(configuration, bundle.configuration),
        "keys": [_part(key, raw) for raw in bundle.key_configs],
        "instance": _part(instance, bundle.instance_config),
        "models": _part(log, bundle.measurement_log),
    }


def _part(parse: Callable[[bytes], Any], data: bytes) -> Any:  # noqa: ANN401 - JSON values
    try:
        return parse(data)
    except CasemateError as error:
        return {"unreadable": f"{error.code}: {error.detail}"}


def configuration(data: bytes) -> Facts:
    """Take a configuration apart (SPEC 3.2), with the PCR16 that it gives."""
    parsed = Configuration.parse(data)
    kms = parsed.kms
    return {
        "audience": parsed.audience,
        "pcr16": pcr16(data).hex(),
        "publishers": [publisher.hex() for publisher in parsed.publishers],
        "minimum_versions": [
            {"publisher": name.partition("/")[0], "model": name.partition("/")[2], "version": least}
            for name, least in parsed.minimum_versions.items()
        ],
        "limits": {
            name: getattr(parsed.limits, name)
            for name in (
                *("sessions", "models", "model_bytes", "request_bytes"),
                *("stream_bytes", "lifetime", "drain"),
            )
        },
        "providers": ", ".join(parsed.providers),
        "kms": None
        if kms is None
        else {
            "partition": kms.partition,
            "endpoints": list(kms.endpoints.values()),
            "tls_roots": [certificate(root) for root in kms.tls_roots],
        },
    }


def key(data: bytes) -> Facts:
    """Take a key configuration apart (SPEC 3.3)."""
    parsed = KeyConfig.parse(data)
    return {
        "key_id": key_id(data).hex(),
        "not_before": moment(parsed.not_before),
        "not_after": moment(parsed.not_after),
    }


def instance(data: bytes) -> Facts:
    """Take an instance configuration apart (SPEC 3.4)."""
    parsed = InstanceConfig.parse(data)
    return {
        "instance_id": parsed.instance_id.hex(),
        "form": parsed.form,
        "boot_time": moment(parsed.boot_time),
        "receipt_key": parsed.receipt_key.hex(),
    }


def log(data: bytes) -> list[Facts]:
    """Take a measurement log apart (SPEC 3.5)."""
    return [
        {
            "time": moment(entry.time),
            "op": entry.op,
            "name": entry.name,
            "version": entry.version,
            "digest": entry.digest.hex(),
            "publisher": entry.publisher.hex(),
        }
        for entry in parse_log(data)
    ]


def hex_or_none(value: bytes | None) -> str | None:
    """Return hex, or None where there is nothing."""
    return None if value is None else value.hex()
