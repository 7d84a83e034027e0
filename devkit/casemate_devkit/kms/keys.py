"""KMS keys: moto's, with versions of their material and what makes them last."""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
import threading
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from moto.kms.models import Key

from casemate_devkit.kms import blobs
from casemate_devkit.kms.grants import Grant
from casemate_devkit.kms.state import (
    decode_private_key,
    decode_secret,
    encode_private_key,
    encode_secret,
    read_state,
    write_state,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

CURVES: Final[dict[str, type[ec.EllipticCurve]]] = {
    "ECC_NIST_P256": ec.SECP256R1,
    "ECC_NIST_P384": ec.SECP384R1,
    "ECC_NIST_P521": ec.SECP521R1,
}
SYMMETRIC: Final = "SYMMETRIC_DEFAULT"
ENCRYPTION: Final = "ENCRYPT_DECRYPT"
AGREEMENT: Final = "KEY_AGREEMENT"
ROTATION_DAYS: Final = 365  # AWS's default
_MATERIAL_BYTES: Final = 32
_STATES: Final = {"Disabled", "Enabled", "PendingDeletion"}
_PLAIN: Final = (
    "policy",
    "key_usage",
    "key_spec",
    "description",
    "account_id",
    "region",
    "id",
    "creation_date",
    "key_state",
    "key_rotation_status",
    "rotation_days",
    "tags",
)


class KmsKey(Key):
    """One key; ``materials`` grows by rotation, its last element encrypts."""

    def __init__(
        self, policy: str | None, usage: str, spec: str, description: str, place: tuple[str, str]
    ) -> None:
        """Make a key in ``place``, an account and a region."""
        super().__init__(policy, usage, spec, description, *place)
        self.materials = [secrets.token_bytes(_MATERIAL_BYTES)]
        self.agreement_key = (
            ec.generate_private_key(CURVES[spec]()) if usage == AGREEMENT else None
        )
        self.rotation_days = ROTATION_DAYS
        self.tags: dict[str, str] = {}

    def metadata(self) -> dict[str, Any]:
        """Return the KeyMetadata as AWS shapes it, members without value left out."""
        record: dict[str, Any] = self.to_dict()["KeyMetadata"]
        for name in ("EncryptionAlgorithms", "SigningAlgorithms"):
            record.pop(name, None)
        agrees = self.key_usage == AGREEMENT
        name = "KeyAgreementAlgorithms" if agrees else "EncryptionAlgorithms"
        record[name] = ["ECDH"] if agrees else [SYMMETRIC]
        return {name: value for name, value in record.items() if value is not None}

    def set_state(self, state: str, deletion: dt.datetime | None = None) -> None:
        """Enable, disable, or schedule the deletion of the key."""
        self.key_state = state
        self.enabled = state == "Enabled"
        self.deletion_date = deletion

    def record(self) -> dict[str, Any]:
        """Return the key for the state file, its secrets included."""
        private = self.agreement_key
        return {name: getattr(self, name) for name in _PLAIN} | {
            "deletion_date": self.deletion_date.isoformat() if self.deletion_date else None,
            "materials": [encode_secret(item) for item in self.materials],
            "private_key": encode_private_key(private) if private else None,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> KmsKey:
        """Return the key that ``record`` describes; raises KeyError, TypeError or ValueError."""
        names = ("policy", "key_usage", "key_spec", "description")
        key = cls(*(record[name] for name in names), (record["account_id"], record["region"]))
        for name in _PLAIN:
            setattr(key, name, record[name])
        if key.key_state not in _STATES:
            raise ValueError("a key has an unknown state")
        deletion = record["deletion_date"]
        key.set_state(key.key_state, dt.datetime.fromisoformat(deletion) if deletion else None)
        key.arn = f"{key.arn.rpartition('/')[0]}/{key.id}"
        key.materials = [decode_secret(text) for text in record["materials"]]
        if key.agreement_key is not None:
            key.agreement_key = decode_private_key(record["private_key"])
        return key

    def __repr__(self) -> str:
        """Name the key, not its material."""
        return f"KmsKey({self.arn})"


class KeyStore:
    """Keys, aliases and grants of all accounts; every method is thread-safe.

    With ``path`` they last: each change is on disk before it is answered. Raises ValueError if the
    file there is not one that this class wrote.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._keys: dict[str, KmsKey] = {}
        self.aliases: dict[str, str] = {}  # alias ARN to key id
        self.grants: dict[str, Grant] = {}
        if path is not None and path.exists():
            self._load(path)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock; what was changed is on disk when the block ends."""
        with self._lock:
            yield
            self._save()

    def create(
        self,
        place: tuple[str, str],
        policy: str | None,
        description: str = "",
        spec: str = SYMMETRIC,
        tags: Mapping[str, str] | None = None,
    ) -> KmsKey:
        """Return a new key in an account and region; without ``policy`` AWS's default policy."""
        usage = ENCRYPTION if spec == SYMMETRIC else AGREEMENT
        key = KmsKey(policy, usage, spec, description, place)
        key.tags = dict(tags or {})
        with self.changing():
            self._keys[key.id] = key
        return key

    def find(self, account: str, region: str, key_id: str) -> KmsKey | None:
        """Return the key with this bare id, or None."""
        with self._lock:
            self._expire()
            key = self._keys.get(key_id)
        return key if key and (key.account_id, key.region) == (account, region) else None

    def listed(self, account: str, region: str) -> list[KmsKey]:
        """Return the keys of one account in one region."""
        with self._lock:
            self._expire()
            keys = list(self._keys.values())
        return [key for key in keys if (key.account_id, key.region) == (account, region)]

    def owner(self, region: str, blob: bytes) -> KmsKey | None:
        """Return the key that made ``blob``, of whatever account, or None."""
        with self._lock:
            self._expire()
            key = self._keys.get(blobs.key_id(blob))
        return key if key and key.region == region else None

    def aliases_of(self, key: KmsKey) -> list[str]:
        """Return the names of a key's aliases, as ``alias/data``."""
        with self._lock:
            return [arn.rpartition(":")[2] for arn, name in self.aliases.items() if name == key.id]

    def grants_of(self, key: KmsKey) -> list[Grant]:
        """Return the grants on a key."""
        with self._lock:
            return [grant for grant in self.grants.values() if grant.key_id == key.id]

    def encrypt(self, key: KmsKey, plaintext: bytes, context: Mapping[str, str]) -> bytes:
        """Return a ciphertext blob of ``plaintext`` bound to the encryption context."""
        with self._lock:
            return blobs.seal(key.id, key.materials, plaintext, context)

    def decrypt(self, key: KmsKey, blob: bytes, context: Mapping[str, str]) -> bytes:
        """Return the plaintext; raises InvalidCiphertextException."""
        with self._lock:
            return blobs.open_blob(key.id, key.materials, blob, context)

    def rotate(self, key: KmsKey) -> None:
        """Give the key new material; ciphertexts under the old still open."""
        with self.changing():
            key.materials.append(secrets.token_bytes(_MATERIAL_BYTES))

    def _expire(self) -> None:
        """Delete keys whose waiting period is over, with their aliases and grants."""
        now = dt.datetime.now(dt.UTC)
        over = {k.id for k in self._keys.values() if k.deletion_date and k.deletion_date <= now}
        if not over:
            return
        self._keys = {name: key for name, key in self._keys.items() if name not in over}
        self.aliases = {name: key for name, key in self.aliases.items() if key not in over}
        self.grants = {name: item for name, item in self.grants.items() if item.key_id not in over}
        self._save()

    def _save(self) -> None:
        if self._path is not None:
            state = {
                "keys": [key.record() for key in self._keys.values()],
                "aliases": self.aliases,
                "grants": [grant.record() for grant in self.grants.values()],
            }
            write_state(self._path, state)

    def _load(self, path: Path) -> None:
        try:
            state = read_state(path)
            keys = [KmsKey.from_record(record) for record in state["keys"]]
            grants = [Grant(**record) for record in state["grants"]]
            self.aliases = dict(state["aliases"])
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{path.name} holds no keys of this double: {type(error).__name__}"
            raise ValueError(msg) from None
        self._keys = {key.id: key for key in keys}
        self.grants = {grant.id: grant for grant in grants}
