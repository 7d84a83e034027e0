"""A certificate authority of a test's own, for the TLS of the front and of callers."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

HOST_NAME = "front.example"


@dataclass
class FrontPki:
    """Issues certificates into ``folder``, each as NAME.pem and NAME.key."""

    folder: Path
    name: str = "ca"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        subject = _name(self.name)
        self._certificate = self._sign(subject, subject, self.key.public_key(), None)
        self.root = self.folder / f"{self.name}.pem"
        self.root.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str, file: str = "") -> tuple[bytes, bytes]:
        """(certificate, key) for ``name`` in PEM; also written below ``folder``."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        made = self._sign(_name(name), self._certificate.subject, key.public_key(), names)
        pem = made.public_bytes(Encoding.PEM)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / f"{file or name}.pem").write_bytes(pem)
        (self.folder / f"{file or name}.key").write_bytes(secret)
        return pem, secret

    def _sign(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        public: ec.EllipticCurvePublicKey,
        names: x509.SubjectAlternativeName | None,
    ) -> x509.Certificate:
        moment = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - dt.timedelta(hours=1))
            .not_valid_after(moment + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
