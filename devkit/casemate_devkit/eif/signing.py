"""The signature section of an image (SPEC 4.4): who vouches for PCR0; gives PCR8.

The key lies in a file or in KMS, which signs without showing it. It is never the enclave's, and
nothing that Casemate writes trusts PCR8 alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
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


_WANTED: Final = "images are signed with keys on P-256, P-384 or P-521"
_ANOTHERS: Final = "the certificate is another key's"
# What KMS answers when the key cannot make this signature, whoever asks; ValidationException is
# also its word for an algorithm that is not the key's.
_NOT_THIS_KEY: Final = frozenset(
    {
        *("DisabledException", "InvalidKeyUsageException", "KMSInvalidStateException"),
        *("NotFoundException", "UnsupportedOperationException", "ValidationException"),
    }
)
_NOT_NOW: Final = frozenset(
    {"DependencyTimeoutException", "KeyUnavailableException", "ThrottlingException"}
)
_SERVERS_FAULT: Final = 500


class SigningCode(StrEnum):
    """Why an image was not signed; stable, first in the message."""

    CERTIFICATE_UNUSABLE = "CERTIFICATE_UNUSABLE"
    KEY_UNUSABLE = "KEY_UNUSABLE"
    KEY_MISMATCH = "KEY_MISMATCH"
    KMS_REFUSED = "KMS_REFUSED"
    KMS_UNAVAILABLE = "KMS_UNAVAILABLE"


class SigningError(DevkitError):
    """No signature was made, for the reason ``code``."""

    def __init__(self, code: SigningCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class Key(Protocol):
    """Something that makes ECDSA signatures."""

    def sign(self, message: bytes, curve: str) -> bytes:
        """Sign with the curve's own hash; the signature in DER. Raises SigningError."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class FileKey:
    """A private key of elliptic curves."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, path: Path) -> FileKey:
        """Read a PEM without passphrase; raises SigningError."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            detail = f"{path}: no private key that can be read: {error}"
            raise SigningError(SigningCode.KEY_UNUSABLE, detail) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SigningError(SigningCode.KEY_UNUSABLE, f"{path}: {_WANTED}")
        return cls(key)

    def sign(self, message: bytes, curve: str) -> bytes:
        """Sign here."""
        if self.key.curve.name != curve:
            raise SigningError(SigningCode.KEY_MISMATCH, _ANOTHERS)
        return self.key.sign(message, ec.ECDSA(_SUITES[curve][1]))


@dataclass(frozen=True, slots=True)
class KmsKey:
    """A key in KMS for signing; ``client`` is boto3's."""

    client: Any
    arn: str

    @classmethod
    def open(cls, arn: str) -> KmsKey:
        """Use it with the environment's credentials, in its ARN's region; raises SigningError."""
        region = arn.split(":")[3:4]
        try:
            client = boto3.Session().client("kms", region_name=region[0] if region else None)
        except BotoCoreError as error:
            raise SigningError(SigningCode.KMS_UNAVAILABLE, str(error)) from None
        return cls(client, arn)

    def sign(self, message: bytes, curve: str) -> bytes:
        """Have KMS hash and sign the message, which it takes whole up to 4,096 bytes."""
        try:
            answer = self.client.sign(
                KeyId=self.arn,
                Message=message,
                MessageType="RAW",
                SigningAlgorithm=_SUITES[curve][3],
            )
        except ClientError as error:
            raise _refusal(error) from None
        except BotoCoreError as error:
            raise SigningError(SigningCode.KMS_UNAVAILABLE, str(error)) from None
        signature: bytes = answer["Signature"]
        return signature


def _refusal(error: ClientError) -> SigningError:
    kind = error.response["Error"]["Code"]
    detail = f"{kind}: {error.response['Error'].get('Message', '')}"
    if kind in _NOT_THIS_KEY:
        return SigningError(SigningCode.KEY_UNUSABLE, detail)
    failed = error.response["ResponseMetadata"].get("HTTPStatusCode", 0) >= _SERVERS_FAULT
    if failed or kind in _NOT_NOW:
        return SigningError(SigningCode.KMS_UNAVAILABLE, detail)
    return SigningError(SigningCode.KMS_REFUSED, detail)


def section(key: Key, certificate_pem: bytes, pcr0: bytes) -> bytes:
    """The section's content: the certificate and a COSE_Sign1 over PCR0.

    Raises SigningError; what it returns verifies with the certificate.
    """
    certificate, public = _signer(certificate_pem)
    protected, algorithm, half, _ = _SUITES[public.curve.name]
    payload = cbor.encode({"register_index": 0, "register_value": list(pcr0)})
    message = cbor.encode(["Signature1", protected, b"", payload])
    encoded = key.sign(message, public.curve.name)
    try:
        public.verify(encoded, message, ec.ECDSA(algorithm))
    except InvalidSignature:
        raise SigningError(SigningCode.KEY_MISMATCH, _ANOTHERS) from None
    r, s = decode_dss_signature(encoded)
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


def _signer(certificate_pem: bytes) -> tuple[x509.Certificate, ec.EllipticCurvePublicKey]:
    try:
        (certificate,) = x509.load_pem_x509_certificates(certificate_pem)
        public = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        detail = "not exactly one certificate in PEM, with a key that is known"
        raise SigningError(SigningCode.CERTIFICATE_UNUSABLE, detail) from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in _SUITES:
        raise SigningError(SigningCode.CERTIFICATE_UNUSABLE, _WANTED)
    return certificate, public
