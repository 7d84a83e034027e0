"""Key mode 1: a data key sealed to an enclave's key with HPKE (SPEC 1.7, 5.2)."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from casemate import wire
from casemate.envelope.failure import open_failed
from casemate.envelope.guard import Guarded
from casemate.envelope.header import WRAPPED_BYTES
from casemate.errors import Code, EnvelopeError

PUBLIC_KEY_BYTES: Final = 1216
_MLKEM_BYTES: Final = 1184
_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _info(key_config: bytes) -> bytes:
    return wire.label("data-key") + key_config


class KemKey(Guarded):
    """An enclave's X-Wing key pair (ML-KEM-768 and X25519). It never leaves the process."""

    __slots__ = ("_private", "public_bytes")

    def __init__(
        self, mlkem_key: mlkem.MLKEM768PrivateKey, x25519_key: x25519.X25519PrivateKey
    ) -> None:
        self._private = MLKEM768X25519PrivateKey(mlkem_key, x25519_key)
        self.public_bytes = (
            mlkem_key.public_key().public_bytes_raw() + x25519_key.public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls) -> KemKey:
        """Make a fresh key pair."""
        return cls(mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate())

    def unwrap(self, wrapped: bytes, key_config: bytes) -> bytes:
        """Return the 32-byte data key in ``enc || ct`` (1,168 bytes).

        ``key_config`` is the attested encoding that names this key. Raises EnvelopeError
        (OPEN_FAILED) with one text, whatever failed.
        """
        if len(wrapped) != WRAPPED_BYTES:
            raise open_failed()
        try:
            data_key = _SUITE.decrypt(wrapped, self._private, _info(key_config))
        except (InvalidTag, ValueError):
            raise open_failed() from None
        if len(data_key) != wire.KEY_BYTES:
            raise open_failed()
        return data_key


def wrap(public_key: bytes, data_key: bytes, key_config: bytes) -> bytes:
    """Seal a data key to ``public_key`` (1,216 bytes) of ``key_config``; returns ``enc || ct``.

    Raises EnvelopeError (INVALID_ARGUMENT) if ``public_key`` is not a usable key.
    """
    if len(data_key) != wire.KEY_BYTES:
        raise ValueError("a data key has 32 bytes")
    try:
        key = MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_BYTES]),
            x25519.X25519PublicKey.from_public_bytes(public_key[_MLKEM_BYTES:]),
        )
        return _SUITE.encrypt(data_key, key, _info(key_config))
    except ValueError:
        raise EnvelopeError(Code.INVALID_ARGUMENT, "unusable public key") from None
