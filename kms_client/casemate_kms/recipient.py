"""The RSA key that KMS seals to; it is made inside the enclave and never leaves it (SPEC 10.2)."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from casemate import limits
from casemate.envelope.guard import Guarded

_EXPONENT: Final = 65537
_BITS: Final = 2048


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RecipientKey(Guarded):
    """A key pair with its DER SubjectPublicKeyInfo; a call keeps the one that it began with."""

    private: rsa.RSAPrivateKey
    public_der: bytes
    made: float


class RecipientKeys(Guarded):
    """Hands out the current key and replaces it when it is an hour old; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: RecipientKey | None = None

    def current(self) -> RecipientKey:
        """Return the current key; makes one if there is none or it is too old (0.1 s)."""
        with self._lock:
            now = time.monotonic()
            if self._key is None or now - self._key.made > limits.KMS_RECIPIENT_KEY_S:
                self._key = _generate(now)
            return self._key

    def retire(self, key: RecipientKey) -> None:
        """Let nothing be sealed to ``key`` any more: it met an envelope that does not open.

        So whoever could feed envelopes to the enclave learns one bit from each key (THREATS A51).
        """
        with self._lock:
            if self._key is key:
                self._key = None


def _generate(now: float) -> RecipientKey:
    private = rsa.generate_private_key(_EXPONENT, _BITS)
    public = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return RecipientKey(private, public, now)
