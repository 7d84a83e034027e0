"""The signature section of an image (SPEC 4.4): who vouches for PCR0; gives PCR8.

The key lies in a file or in KMS, which signs without showing it. It is never the enclave's, and
nothing that Casemate writes trusts PCR8 alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from casemate import cbor
from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from pathlib import Path

# By the key's curve: COSE's protected header, the hash, bytes of each half, KMS's name for it.
_SUITES: Final[dict[str, tuple[bytes, hashes.HashAlgorithm, int, str]]] = {
    "secp256r1": (bytes.fromhex("a10126"), hashes.SHA256(), 32, "ECDSA_SHA_256"),
    "secp384r1": (bytes.fromhex("a1013822"), hashes.SHA384(), 48, "ECDSA_SHA_384"),
    "secp521r1": (bytes.fromhex("a1013823"), hashes.SHA512(), 66, "ECDSA_SHA_512"),
}


class Key(Protocol):
    """Something that makes ECDSA signatures."""

    def sign(self, message: bytes, curve: str) -> bytes:
        """Sign with the curve's own hash; the signature in DER."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class FileKey:
    """A private key of elliptic curves."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, path: Path) -> FileKey:
        """Read a PEM without passphrase; raises DevkitError."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise DevkitError(f"{path}: no private key that can be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise DevkitError(f"{path}: images are signed with keys on P-256, P-384 or P-521")
        return cls(key)

    def sign(self, message: bytes, curve: str) -> bytes:
        """Sign here."""
        if self.key.curve.name != curve:
            raise DevkitError("the certificate is another key's")
        return self.key.sign(message, ec.ECDSA(_SUITES[curve][1]))


@dataclass(frozen=True, slots=True)
class KmsKey:
    """A key in KMS for signing; ``client`` is boto3's."""

    client: Any
    arn: str

    def sign(self, message: bytes, curve: str) -> bytes:
        """Have KMS sign the message's hash."""
        _, algorithm, _, name = _SUITES[curve]
        state = hashes.Hash(algorithm)
        state.update(message)
        answer = self.client.sign(
            KeyId=self.arn,
            Message=state.finalize(),
            MessageType="DIGEST",
            SigningAlgorithm=name,
        )
        signature: bytes = answer["Signature"]
        return signature


def section(key: Key, certificate_pem: bytes, pcr0: bytes) -> bytes:
    """The section's content: the certificate and a COSE_Sign1 over PCR0.

    Raises DevkitError for a certificate that does not do, or is another key's.
    """
    try:
        (certificate,) = x509.load_pem_x509_certificates(certificate_pem)
    except ValueError:
        raise DevkitError("not exactly one certificate in PEM") from None
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in _SUITES:
        raise DevkitError("images are signed with keys on P-256, P-384 or P-521")
    protected, _, half, _ = _SUITES[public.curve.name]
    payload = cbor.encode({"register_index": 0, "register_value": list(pcr0)})
    message = cbor.encode(["Signature1", protected, b"", payload])
    r, s = decode_dss_signature(key.sign(message, public.curve.name))
    signature = r.to_bytes(half, "big") + s.to_bytes(half, "big")
    cose = cbor.encode([protected, {}, payload, signature])
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    # Arrays of numbers, not byte strings: what AWS's tools write and read.
    entry: dict[str, cbor.Value] = {
        "signing_certificate": list(pem),
        "signature": list(cose),
    }
    # serde's order, which the length-first order of deterministic CBOR is not.
    pairs = b"".join(cbor.encode(name) + cbor.encode(value) for name, value in entry.items())
    return b"\x81\xa2" + pairs
