"""The certificates of a Nitro PKI, level by level: names, lifetimes, extensions.

Taken from genuine chains, which differ from what an RFC 5280 profile leads one to expect: leaves
have no key identifiers and no SAN, their key usage is not critical, intermediates list CRLs that
verifiers must not fetch.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import uuid
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec


class Level(IntEnum):
    """Depth in the chain."""

    ROOT = 0
    REGIONAL = 1
    ZONAL = 2
    INSTANCE = 3
    LEAF = 4


@dataclass(frozen=True, slots=True)
class _Profile:
    before: dt.timedelta  # how far notBefore lies in the past
    after: dt.timedelta
    serial_bytes: int
    path_length: int | None = None
    crl: bool = False


_HOUR = dt.timedelta(hours=1)
_NONE = dt.timedelta()
_PROFILES: Final = {
    Level.ROOT: _Profile(_HOUR, dt.timedelta(days=10958), 16),
    Level.REGIONAL: _Profile(_HOUR, dt.timedelta(days=20), 16, path_length=2, crl=True),
    Level.ZONAL: _Profile(_HOUR, dt.timedelta(days=5, hours=23), 16, path_length=1, crl=True),
    Level.INSTANCE: _Profile(_NONE, dt.timedelta(days=1), 20, path_length=0),
    Level.LEAF: _Profile(dt.timedelta(seconds=3), dt.timedelta(hours=3), 16),
}

_C, _ST, _L = NameOID.COUNTRY_NAME, NameOID.STATE_OR_PROVINCE_NAME, NameOID.LOCALITY_NAME
_O, _OU, _CN = (
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.COMMON_NAME,
)


def name(level: Level, region: str, subject: str) -> x509.Name:
    """The subject at ``level``; ``subject`` is the instance id or module id there, else unused."""
    short = secrets.token_hex(8)
    common = {
        Level.ROOT: "aws.nitro-enclaves",
        Level.REGIONAL: f"{short}.{region}.aws.nitro-enclaves",
        Level.ZONAL: f"{short}.zonal.{region}.aws.nitro-enclaves",
        Level.INSTANCE: f"{subject}.{region}.aws.nitro-enclaves",
        Level.LEAF: f"{subject}.{region}.aws",
    }[level]
    country, company, unit, last = (_C, "US"), (_O, "Amazon"), (_OU, "AWS"), (_CN, common)
    if level <= Level.REGIONAL:
        parts = [country, company, unit, last]
    elif level is Level.ZONAL:
        parts = [last, unit, company, country, (_ST, "WA"), (_L, "Seattle")]
    else:
        parts = [country, (_ST, "Washington"), (_L, "Seattle"), company, unit, last]
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def template(
    level: Level,
    *,
    subject: x509.Name,
    issuer: x509.Certificate | None,
    public_key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
) -> x509.CertificateBuilder:
    """An unsigned certificate; ``issuer`` is None for the root, ``now`` has whole seconds."""
    profile = _PROFILES[level]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(public_key)
        .serial_number(_leaf_serial(subject, now) if level is Level.LEAF else _serial(profile))
        .not_valid_before(now - profile.before)
        .not_valid_after(now + profile.after)
    )
    for extension, critical in _extensions(level, public_key, issuer):
        builder = builder.add_extension(extension, critical=critical)
    return builder


def _serial(profile: _Profile) -> int:
    # One bit less: RFC 5280 allows 20 bytes of a positive number.
    return (int.from_bytes(secrets.token_bytes(profile.serial_bytes)) >> 1) | 1


def _leaf_serial(subject: x509.Name, now: dt.datetime) -> int:
    """As a real leaf's: the enclave id, four zero bytes, the time of issue."""
    module_id = str(subject.get_attributes_for_oid(_CN)[0].value).partition(".")[0]
    enclave = int(module_id.rpartition("-enc")[2], 16)
    return enclave << 64 | int(now.timestamp())


def _extensions(
    level: Level, public_key: ec.EllipticCurvePublicKey, issuer: x509.Certificate | None
) -> list[tuple[x509.ExtensionType, bool]]:
    profile = _PROFILES[level]
    constraints = x509.BasicConstraints(ca=level < Level.LEAF, path_length=profile.path_length)
    own = (x509.SubjectKeyIdentifier.from_public_key(public_key), False)
    usage = (_usage(level), level < Level.LEAF)
    listed: list[tuple[x509.ExtensionType, bool]] = [(constraints, True)]
    if level is Level.LEAF:
        return [*listed, usage]
    if issuer is None:
        return [*listed, own, usage]
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    above = (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False)
    if level is Level.INSTANCE:
        return [*listed, usage, own, above]
    return [*listed, above, own, usage, (_crl(level, issuer), False)]


def _usage(level: Level) -> x509.KeyUsage:
    authority = level < Level.LEAF
    return x509.KeyUsage(
        digital_signature=level is not Level.INSTANCE,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=level < Level.INSTANCE,
        encipher_only=False,
        decipher_only=False,
    )


def _crl(level: Level, issuer: x509.Certificate) -> x509.CRLDistributionPoints:
    """A name that can never resolve (RFC 2606), as long as a real one."""
    number = uuid.UUID(
        bytes=hashlib.sha256(issuer.public_bytes(Encoding.DER)).digest()[:16], version=4
    )
    host = "aws-nitro-enclaves-crl.s3.amazonaws.invalid"
    if level is Level.ZONAL:
        region = str(issuer.subject.get_attributes_for_oid(_CN)[0].value).split(".")[1]
        host = f"crl-{region}-aws-nitro-enclaves.s3.{region}.amazonaws.invalid"
    locator = x509.UniformResourceIdentifier(f"http://{host}/crl/{number}.crl")
    return x509.CRLDistributionPoints([x509.DistributionPoint([locator], None, None, None)])
