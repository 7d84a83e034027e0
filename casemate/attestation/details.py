"""What a passed step has to say (SPEC 3.8): one line for people, in which nothing is decided.

Called with a check's result and then its arguments, and only where somebody observes the steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from cryptography import x509

from casemate.attestation.structures import key_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.attestation.cose import CoseSign1
    from casemate.attestation.document import UnverifiedDocument, VerifiedDocument
    from casemate.attestation.policy import Release
    from casemate.attestation.structures import Configuration, InstanceConfig, KeyConfig, LogEntry

Detail = Callable[..., str]


class _Measured(Protocol):
    """A release of any platform: the registers by which step 12 knows it."""

    @property
    def name(self) -> str: ...

    @property
    def image(self) -> Mapping[int, bytes]: ...


_SHORT: Final = 16  # hex digits: enough to compare by eye
_YEAR_10000: Final = 253_402_300_800_000  # beyond it datetime has no name for a time


def short(value: bytes) -> str:
    """Return the first hex digits of ``value``."""
    return f"{value.hex()[:_SHORT]}..."


def moment(milliseconds: int) -> str:
    """Return a time as RFC 3339 in UTC, to the second; a number where there is no such date."""
    if milliseconds >= _YEAR_10000:
        return f"{milliseconds} ms after 1970"
    return datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def chain_end(certificates: Sequence[bytes]) -> int:
    """Return when the first of parsable ``certificates`` expires, in milliseconds."""
    ends = [x509.load_der_x509_certificate(der).not_valid_after_utc for der in certificates]
    return int(min(ends).timestamp()) * 1000


def _cose(cose: CoseSign1, _data: bytes) -> str:
    return f"{len(cose.payload)} bytes of payload"


def _payload(document: UnverifiedDocument, _cose: CoseSign1) -> str:
    return f"module {document.module_id}"


def _root(_: None, document: UnverifiedDocument, _roots: frozenset[bytes]) -> str:
    return f"SHA-256 {short(hashlib.sha256(document.cabundle[0]).digest())}"


def _chain(_: object, certificates: Sequence[bytes], *_context: object) -> str:
    return f"{len(certificates)} certificates, valid until {moment(chain_end(certificates))}"


def _age(_: None, document: VerifiedDocument, maximum_age_seconds: int, now: int) -> str:
    age = (now - document.timestamp) / 1000
    return f"{age:.1f} s old, at most {maximum_age_seconds} s accepted"


def _nonce(_: None, *subjects: Any) -> str:  # noqa: ANN401 - the issued nonce comes last
    nonce: bytes | None = subjects[-1]
    return "none issued: stapled" if nonce is None else f"the one issued, {len(nonce)} bytes"


def _debug(debug: bool, *_: object) -> str:  # noqa: FBT001 - the check's result
    return "DEBUG MODE, which the policy allows" if debug else "PCR0, 1 and 2 are set"


def _measurements(releases: tuple[_Measured, ...], *_: object) -> str:
    names = " or ".join(release.name for release in releases)
    return f"{', '.join(f'PCR{index}' for index in releases[0].image)} of release {names}"


def _configuration(found: tuple[Configuration, Release], *_: object) -> str:
    release = found[1]
    return f"that of release {release.name}, PCR16 {short(release.pcr16)}"


def _keys(keys: tuple[KeyConfig, ...], key_configs: tuple[bytes, ...], timestamp: int) -> str:
    listed = zip(key_configs, keys, strict=True)
    raw, key = [(raw, key) for raw, key in listed if key.valid_at(timestamp)][-1]
    return f"key {key_id(raw).hex()}, valid until {moment(key.not_after)}"


def _instance(instance: InstanceConfig, *_: object) -> str:
    return f"form {instance.form}, booted {moment(instance.boot_time)}"


def _models(log: tuple[LogEntry, ...], *_: object) -> str:
    loads = [f"{entry.name}:{entry.version}" for entry in log if entry.op == "load"]
    named = f": {', '.join(loads[:3])}" if loads else ""
    return f"{len(loads)} loaded, all allowed{named}{', ...' if loads[3:] else ''}"


DETAILS: Final[Mapping[int, Detail]] = {
    1: lambda *_: "every part within its bound",
    2: _cose,
    3: lambda *_: "ES384",
    4: _payload,
    5: lambda _, *subjects: subjects[-1].platform,
    6: _root,
    7: _chain,
    8: lambda *_: "by the leaf certificate, over the received bytes",
    9: _age,
    10: _nonce,
    11: _debug,
    12: _measurements,
    13: _configuration,
    14: lambda *_: "the document binds every part of the bundle",
    15: _keys,
    16: _instance,
    17: lambda _, _configuration, audience: audience,
    18: _models,
}


def detail(number: int, result: Any, arguments: tuple[Any, ...]) -> str:  # noqa: ANN401 - any check's
    """Return what step ``number`` has to say after it passed."""
    return DETAILS[number](result, *arguments)
