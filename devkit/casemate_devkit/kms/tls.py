"""A private CA for the double, and its server certificate for the names of KMS endpoints."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CA_LIFETIME = dt.timedelta(days=30)
_LIFETIME = dt.timedelta(days=7)
_BACKDATED = dt.timedelta(minutes=5)
_CURVE = ec.SECP256R1


def endpoint_host(region: str) -> str:
    """Return the host name of KMS in ``region`` (SPEC 3.2)."""
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"kms.{region}.{suffix}"


def server_context(directory: Path, regions: Sequence[str]) -> ssl.SSLContext:
    """Return a TLS server context; makes the CA below ``directory`` once and reuses it.

    A CA that stays the same keeps PCR16 of a configuration that pins it. Writes ``ca.pem``,
    ``ca.der``, and, readable by the owner only, ``ca.key`` and ``server.pem``.
    """
    certificate, key = _authority(directory)
    server_key = ec.generate_private_key(_CURVE())
    names = [x509.DNSName(endpoint_host(region)) for region in regions]
    alternatives = [
        *names,
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
    ]
    builder = _builder("Casemate KMS double", certificate.subject, server_key, _LIFETIME)
    usage = _key_usage(signs_certificates=False)
    server = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(_issuer_id(key), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = directory / "server.pem"
    _write_private(chain, _pem(server_key) + server.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(chain)
    return context


def _authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    paths = directory / "ca.pem", directory / "ca.key"
    if all(path.exists() for path in paths):
        certificate = x509.load_pem_x509_certificate(paths[0].read_bytes())
        key = serialization.load_pem_private_key(paths[1].read_bytes(), None)
        until = certificate.not_valid_after_utc - _LIFETIME
        if isinstance(key, ec.EllipticCurvePrivateKey) and until > _now():
            return certificate, key
    return _new_authority(directory)


def _new_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(_CURVE())
    subject = _name("Casemate KMS double CA")
    certificate = (
        _builder("Casemate KMS double CA", subject, key, _CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_private(directory / "ca.key", _pem(key))
    encodings = {"ca.pem": serialization.Encoding.PEM, "ca.der": serialization.Encoding.DER}
    for name, encoding in encodings.items():
        (directory / name).write_bytes(certificate.public_bytes(encoding))
    return certificate, key


def _builder(
    subject: str,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    lifetime: dt.timedelta,
) -> x509.CertificateBuilder:
    start = _now() - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _issuer_id(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content)
