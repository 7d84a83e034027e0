"""KMS keys, with their aliases, grants and tags: moto keeps them, a backend an account and region.

Beside moto's keys is what moto lacks: the material a key had before it was rotated, how often it
rotates, ciphertexts bound to key and context, and the file that lets all of it last. The backends
are this object's own: moto's other services and ``mock_aws`` do not reach them.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from typing import TYPE_CHECKING, Any, Final

from moto.core.utils import utcnow
from moto.kms.models import Key, KmsBackend

from casemate_devkit.kms import blobs
from casemate_devkit.kms.grants import Grant
from casemate_devkit.kms.state import Beside, key_record, read_state, restore_key, write_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SYMMETRIC: Final = "SYMMETRIC_DEFAULT"
ENCRYPTION: Final = "ENCRYPT_DECRYPT"
AGREEMENT: Final = "KEY_AGREEMENT"
_MATERIAL_BYTES: Final = 32
# For each usage the member of KeyMetadata that lists its algorithms.
_ALGORITHMS: Final = {
    AGREEMENT: "KeyAgreementAlgorithms",
    ENCRYPTION: "EncryptionAlgorithms",
    "GENERATE_VERIFY_MAC": "MacAlgorithms",
    "SIGN_VERIFY": "SigningAlgorithms",
}


def metadata(key: Key) -> dict[str, Any]:
    """Return moto's KeyMetadata, its algorithms mended: moto lists some that do not fit the usage.

    Members without value are left out.
    """
    told: dict[str, Any] = key.to_dict()["KeyMetadata"]
    told["KeyAgreementAlgorithms"] = ["ECDH"]
    told["MacAlgorithms"] = [key.key_spec.replace("HMAC_", "HMAC_SHA_")]
    unfit = set(_ALGORITHMS.values()) - {_ALGORITHMS[key.key_usage]}
    return {name: told[name] for name in told if name not in unfit and told[name] is not None}


class KeyStore:
    """Keys of all accounts; every method is thread-safe.

    With ``path`` they last: each change is on disk before it is answered. Raises ValueError if the
    file there is not one that this class wrote.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._backends: dict[tuple[str, str], KmsBackend] = {}
        self._beside: dict[str, Beside] = {}
        if path is not None and path.exists():
            self._load(path)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock; what was changed is on disk when the block ends."""
        with self._lock:
            yield
            self._save()

    def backend(self, account: str, region: str) -> KmsBackend:
        """Return moto's backend of one account in one region; change it under ``changing``."""
        with self._lock:
            place = (account, region)
            if place not in self._backends:
                self._backends[place] = KmsBackend(region, account)
            return self._backends[place]

    def home(self, key: Key) -> KmsBackend:
        """Return the backend that keeps ``key``."""
        return self.backend(key.account_id, key.region)

    def beside(self, key: Key) -> Beside:
        """Return what is kept of ``key`` beside moto."""
        with self._lock:
            return self._beside.setdefault(key.id, Beside())

    def all(self) -> list[Key]:
        """Return the keys of every account and region."""
        with self._lock:
            self._expire()
            return [key for backend in self._backends.values() for key in backend.keys.values()]

    def listed(self, account: str, region: str) -> list[Key]:
        """Return the keys of one account in one region."""
        return [key for key in self.all() if (key.account_id, key.region) == (account, region)]

    def find(self, account: str, region: str, key_id: str) -> Key | None:
        """Return the key with this bare id, or None."""
        found = [key for key in self.listed(account, region) if key.id == key_id]
        return found[0] if found else None

    def aliased(self, account: str, region: str, name: str) -> Key | None:
        """Return the key behind ``name``, as ``alias/data``, or None."""
        with self._lock:
            found = [key for key in self.listed(account, region) if name in key.aliases]
        return found[0] if found else None

    def owner(self, region: str, blob: bytes) -> Key | None:
        """Return the key that made ``blob``, of whatever account, or None."""
        name = blobs.key_id(blob)
        found = [key for key in self.all() if (key.region, key.id) == (region, name)]
        return found[0] if found else None

    def grants_of(self, key: Key) -> list[Grant]:
        """Return the grants on a key."""
        with self._lock:
            return [grant for grant in key.grants.values() if isinstance(grant, Grant)]

    def encrypt(self, key: Key, plaintext: bytes, context: Mapping[str, str]) -> bytes:
        """Return a ciphertext blob of ``plaintext`` bound to the encryption context."""
        with self._lock:
            return blobs.seal(key.id, self._materials(key), plaintext, context)

    def decrypt(self, key: Key, blob: bytes, context: Mapping[str, str]) -> bytes:
        """Return the plaintext; raises InvalidCiphertextException."""
        with self._lock:
            return blobs.open_blob(key.id, self._materials(key), blob, context)

    def rotate(self, key: Key) -> None:
        """Give the key new material; ciphertexts under the old still open."""
        with self.changing():
            self.home(key).rotate_key_on_demand(key.id)
            self.beside(key).older.append(key.key_material)
            key.key_material = secrets.token_bytes(_MATERIAL_BYTES)

    def _materials(self, key: Key) -> list[bytes]:
        return [*self.beside(key).older, key.key_material]

    def _expire(self) -> None:
        """Delete keys whose waiting period is over, with their aliases and grants."""
        over = [
            key
            for backend in self._backends.values()
            for key in backend.keys.values()
            if key.deletion_date is not None and key.deletion_date <= utcnow()
        ]
        for key in over:
            self.home(key).delete_key(key.id)
            self._beside.pop(key.id, None)
        if over:
            self._save()

    def _save(self) -> None:
        if self._path is not None:
            keys = [
                key_record(key, backend, self.beside(key))
                for backend in self._backends.values()
                for key in backend.keys.values()
            ]
            write_state(self._path, {"keys": keys})

    def _load(self, path: Path) -> None:
        try:
            for record in read_state(path)["keys"]:
                backend = self.backend(record["account"], record["region"])
                self._beside[record["id"]] = restore_key(record, backend)
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{path.name} holds no keys of this double: {type(error).__name__}"
            raise ValueError(msg) from None
