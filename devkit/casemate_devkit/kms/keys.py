"""KMS keys, kept by moto in memory: one backend for each account and region."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from moto.core.exceptions import JsonRESTError
from moto.kms.models import Key, KmsBackend

from casemate_devkit.kms.errors import KmsError

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEY_ID_BYTES = 36  # moto's ciphertext blobs start with the key's id


class KeyStore:
    """Keys of all accounts; every method is thread-safe. Backends are this object's own."""

    def __init__(self) -> None:
        self._backends: dict[tuple[str, str], KmsBackend] = {}
        self._lock = threading.Lock()

    def create(self, account: str, region: str, policy: str | None, description: str) -> Key:
        """Return a new symmetric key; without ``policy`` it has AWS's default policy."""
        with self._lock:
            return self._backend(account, region).create_key(
                policy, "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT", description, None
            )

    def find(self, account: str, region: str, key_id: str) -> Key | None:
        """Return the key with this bare id, or None."""
        with self._lock:
            backend = self._backends.get((account, region))
            return backend.keys.get(key_id) if backend else None

    def listed(self, account: str, region: str) -> list[Key]:
        """Return the keys of one account in one region."""
        with self._lock:
            return list(self._backend(account, region).keys.values())

    def owner(self, region: str, blob: bytes) -> Key | None:
        """Return the key that made ``blob``, of whatever account, or None."""
        key_id = blob[:_KEY_ID_BYTES].decode("ascii", errors="replace")
        with self._lock:
            for (_, place), backend in self._backends.items():
                if place == region and key_id in backend.keys:
                    return backend.keys[key_id]
        return None

    def put_policy(self, key: Key, policy: str) -> None:
        """Replace the policy of ``key``."""
        with self._lock:
            key.policy = policy

    def encrypt(self, key: Key, plaintext: bytes, context: Mapping[str, str]) -> bytes:
        """Return a ciphertext blob of ``plaintext`` bound to the encryption context."""
        with self._lock:
            backend = self._backend(key.account_id, key.region)
            return backend.encrypt(key.id, plaintext, _bound(context))[0]

    def decrypt(self, key: Key, blob: bytes, context: Mapping[str, str]) -> bytes:
        """Return the plaintext; raises InvalidCiphertextException."""
        with self._lock:
            backend = self._backend(key.account_id, key.region)
            try:
                return backend.decrypt(blob, _bound(context), key.id)[0]
            except JsonRESTError:
                raise KmsError("InvalidCiphertextException", "") from None

    def _backend(self, account: str, region: str) -> KmsBackend:
        place = (account, region)
        if place not in self._backends:
            self._backends[place] = KmsBackend(region, account)
        return self._backends[place]


def _bound(context: Mapping[str, str]) -> dict[str, str]:
    """Return the context in one unambiguous value: moto joins names and values without lengths."""
    return {"context": json.dumps(dict(context), sort_keys=True)}


def metadata(key: Key) -> dict[str, Any]:
    """Return the KeyMetadata of ``key`` as AWS shapes it, members without value left out."""
    record: dict[str, Any] = key.to_dict()["KeyMetadata"]
    return {name: value for name, value in record.items() if value is not None}
