"""Key pairs and key agreement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)
from moto.kms.utils import ECDSAPrivateKey

from casemate_devkit.kms.errors import invalid, unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from moto.kms.models import Key

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def _rsa(bits: int) -> Callable[[], PrivateKey]:
    return lambda: rsa.generate_private_key(65537, bits)


def _curve(curve: ec.EllipticCurve) -> Callable[[], PrivateKey]:
    return lambda: ec.generate_private_key(curve)


_MAKERS: Final[dict[str, Callable[[], PrivateKey]]] = {
    "ECC_NIST_P256": _curve(ec.SECP256R1()),
    "ECC_NIST_P384": _curve(ec.SECP384R1()),
    "ECC_NIST_P521": _curve(ec.SECP521R1()),
    "ECC_SECG_P256K1": _curve(ec.SECP256K1()),
    "RSA_2048": _rsa(2048),
    "RSA_3072": _rsa(3072),
    "RSA_4096": _rsa(4096),
}


def new_pair(spec: str) -> tuple[bytes, bytes]:
    """Return a new pair: PKCS#8 and SubjectPublicKeyInfo, both DER; raises KmsError."""
    maker = _MAKERS.get(spec)
    if maker is None:
        raise unsupported(f"The double makes no pairs of {spec}.")
    key = maker()
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return private, public_der(key)


def public_der(key: PrivateKey) -> bytes:
    """Return the SubjectPublicKeyInfo of a private key in DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def agree(key: Key, peer: bytes) -> bytes:
    """Return the raw ECDH secret with the public key ``peer`` (DER); raises KmsError."""
    if not isinstance(key.private_key, ECDSAPrivateKey):
        raise unsupported("The key agrees on nothing.")
    own = key.private_key.private_key
    try:
        public = load_der_public_key(peer)
    except (ValueError, UnsupportedAlgorithm):
        raise invalid("PublicKey is not a SubjectPublicKeyInfo.") from None
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise invalid("PublicKey is not a key of an elliptic curve.")
    if public.curve.name != own.curve.name:
        raise invalid("PublicKey is of another curve than the KMS key.")
    return own.exchange(ec.ECDH(), public)
