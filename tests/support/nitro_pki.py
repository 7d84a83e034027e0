"""A throw-away PKI of the real shape, and documents signed under it.

Independent of ``casemate_devkit``: the simulator must not vouch for the verifier that its own tests
run on, nor the other way round. CBOR and COSE are written out here, not taken from ``casemate``.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.support import der

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NOW = 1_800_000_000_000  # milliseconds: 2027-01-15T08:00:00Z
HOUR = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)
MODULE_ID = "i-0123456789abcdef0-enc0123456789abcdef"
ES384 = bytes.fromhex("a1013822")

K = TypeVar("K")

Extension = tuple[x509.ExtensionType, bool]


def utc(milliseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(milliseconds // 1000, dt.UTC)


def key_usage(*names: str) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in names for name in every})


@dataclass(kw_only=True)
class Spec:
    """One certificate to be made; the defaults are those of an issuing authority."""

    cn: str
    before: dt.timedelta
    after: dt.timedelta
    ca: bool = True
    path_length: int | None = None
    usage: tuple[str, ...] = ("digital_signature", "key_cert_sign", "crl_sign")
    usage_critical: bool = True
    constraints: bool = True
    constraints_critical: bool = True
    extra: Sequence[Extension] = ()
    curve: ec.EllipticCurve = field(default_factory=ec.SECP384R1)
    hash: hashes.SHA256 | hashes.SHA384 = field(default_factory=hashes.SHA384)
    issuer_cn: str | None = None
    edit: Callable[[der.Node], None] | None = None  # changes the tbsCertificate before signing

    def extensions(self) -> list[Extension]:
        made: list[Extension] = []
        if self.constraints:
            constraints = x509.BasicConstraints(self.ca, self.path_length if self.ca else None)
            made.append((constraints, self.constraints_critical))
        if self.usage:
            made.append((key_usage(*self.usage), self.usage_critical))
        return [*made, *self.extra]


def real_shape(module_id: str = MODULE_ID) -> list[Spec]:
    """The five levels of a genuine chain: root, regional, zonal, instance, leaf."""
    domain = "us-east-1.aws.nitro-enclaves"
    return [
        Spec(cn="aws.nitro-enclaves", before=2000 * DAY, after=8000 * DAY),
        Spec(cn=f"a1b2.{domain}", before=2 * DAY, after=18 * DAY, path_length=2),
        Spec(cn=f"c3d4.zonal.{domain}", before=DAY, after=5 * DAY, path_length=1),
        Spec(
            cn=f"i-0123456789abcdef0.{domain}",
            before=2 * HOUR,
            after=22 * HOUR,
            path_length=0,
            usage=("key_cert_sign",),
        ),
        Spec(
            cn=f"{module_id}.us-east-1.aws",
            before=HOUR,
            after=2 * HOUR,
            ca=False,
            usage=("digital_signature", "content_commitment"),
            usage_critical=False,
        ),
    ]


@dataclass
class Chain:
    """A chain from root to leaf with its keys; ``certificates`` are DER."""

    certificates: list[bytes]
    keys: list[ec.EllipticCurvePrivateKey]

    @property
    def root_sha256(self) -> bytes:
        return hashlib.sha256(self.certificates[0]).digest()

    @property
    def roots(self) -> frozenset[bytes]:
        return frozenset([self.root_sha256])


def issue(specs: Sequence[Spec], *, now: int = NOW) -> Chain:
    chain = Chain([], [])
    for index, spec in enumerate(specs):
        key = ec.generate_private_key(spec.curve)
        signer = chain.keys[-1] if index else key
        issuer_cn = spec.issuer_cn or specs[max(index - 1, 0)].cn
        chain.certificates.append(certificate(spec, issuer_cn, key, signer, now=now))
        chain.keys.append(key)
    return chain


def certificate(
    spec: Spec,
    issuer_cn: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    now: int = NOW,
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(spec.cn))
        .issuer_name(_name(issuer_cn))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(utc(now) - spec.before)
        .not_valid_after(utc(now) + spec.after)
    )
    for extension, critical in spec.extensions():
        builder = builder.add_extension(extension, critical)
    made = builder.sign(signer, spec.hash).public_bytes(Encoding.DER)
    return resign(made, spec.edit, signer) if spec.edit else made


def resign(
    data: bytes, edit: Callable[[der.Node], None], signer: ec.EllipticCurvePrivateKey
) -> bytes:
    """Edit the tbsCertificate of ``data`` and sign it anew, as a malicious issuer could."""
    tree = der.parse(data)
    tbs, _, signature = tree.children
    edit(tbs)
    signed = signer.sign(tbs.encode(), ec.ECDSA(hashes.SHA384()))
    signature.content = b"\x00" + signed
    return tree.encode()


def _name(cn: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Throw-away"),
            x509.NameAttribute(NameOID.COMMON_NAME, cn[:64]),
        ]
    )


# CBOR and COSE, written out


def head(major: int, argument: int) -> bytes:
    top = major << 5
    if argument < 24:
        return bytes([top | argument])
    width = next(width for width in (1, 2, 4, 8) if argument < 1 << (8 * width))
    return bytes([top | 24 + (1, 2, 4, 8).index(width)]) + argument.to_bytes(width, "big")


def cbor(value: object) -> bytes:  # noqa: PLR0911 - one return for each type
    """Encode in the order given. ``Raw`` values are taken as they are."""
    match value:
        case Raw():
            return value.data
        case None | bool():
            return {None: b"\xf6", False: b"\xf4", True: b"\xf5"}[value]
        case int():
            return head(0, value) if value >= 0 else head(1, -1 - value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            return head(3, len(value.encode())) + value.encode()
        case list() | tuple():
            return head(4, len(value)) + b"".join(map(cbor, value))
        case dict():
            body = b"".join(cbor(key) + cbor(item) for key, item in value.items())
            return head(5, len(value)) + body
    raise TypeError(type(value))


@dataclass(frozen=True)
class Raw:
    """Bytes that stand for an item as they are; also usable as a map's key."""

    data: bytes


def indefinite(value: Mapping[K, object]) -> Raw:
    body = b"".join(cbor(key) + cbor(item) for key, item in value.items())
    return Raw(b"\xbf" + body + b"\xff")


def registers_of(**values: bytes) -> dict[int, bytes]:
    """``pcr0=...`` and the like by index."""
    return {int(name.removeprefix("pcr")): value for name, value in values.items()}


def registers(**values: bytes) -> dict[int, bytes]:
    """Registers 0..15 as the NSM lists them, zero but for ``values``."""
    return {index: bytes(48) for index in range(16)} | registers_of(**values)


def payload(chain: Chain, **changes: object) -> dict[str, object]:
    """The fields of a genuine payload in their order; a change to ``...`` removes the field."""
    fields: dict[str, object] = {
        "module_id": MODULE_ID,
        "digest": "SHA384",
        "timestamp": NOW,
        "pcrs": registers(pcr0=b"\x10" * 48, pcr1=b"\x11" * 48, pcr2=b"\x12" * 48),
        "certificate": chain.certificates[-1],
        "cabundle": chain.certificates[:-1],
        "public_key": None,
        "user_data": None,
        "nonce": None,
    }
    return {key: value for key, value in (fields | changes).items() if value is not ...}


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def sig_structure(
    body: bytes, *, protected: bytes = ES384, context: str = "Signature1", external: bytes = b""
) -> bytes:
    return cbor([context, protected, external, body])


def sign(chain: Chain, fields: object, protected: bytes = ES384) -> bytes:
    """Sign ``fields`` (a payload map, or anything ``cbor`` takes) with the chain's leaf."""
    body = cbor(fields)
    signature = raw_signature(chain.keys[-1], sig_structure(body, protected=protected))
    return cbor([protected, {}, body, signature])


def document(chain: Chain, **changes: object) -> bytes:
    return sign(chain, payload(chain, **changes))
