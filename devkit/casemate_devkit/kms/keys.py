"""KMS keys, their aliases and grants, and how they last."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
import uuid
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec

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


def _material() -> list[bytes]:
    return [secrets.token_bytes(_MATERIAL_BYTES)]


@dataclass(slots=True, eq=False)
class KmsKey:
    """One key; ``materials`` grows by rotation, its last element encrypts."""

    account: str
    region: str
    policy: str
    spec: str = SYMMETRIC
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: float = field(default_factory=time.time)
    state: str = "Enabled"
    deletion: float | None = None
    rotates: bool = False
    rotation_days: int = ROTATION_DAYS
    materials: list[bytes] = field(default_factory=_material, repr=False)
    agreement_key: ec.EllipticCurvePrivateKey | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.state not in _STATES:
            raise ValueError("a key has an unknown state")
        if self.spec != SYMMETRIC and self.agreement_key is None:
            self.agreement_key = ec.generate_private_key(CURVES[self.spec]())

    @property
    def arn(self) -> str:
        """The ARN; the region says the partition."""
        prefixes = {"cn": "aws-cn", "us-gov": "aws-us-gov"}
        found = [name for prefix, name in prefixes.items() if self.region.startswith(f"{prefix}-")]
        return f"arn:{(*found, 'aws')[0]}:kms:{self.region}:{self.account}:key/{self.id}"

    @property
    def usage(self) -> str:
        """``ENCRYPT_DECRYPT`` or ``KEY_AGREEMENT``."""
        return ENCRYPTION if self.spec == SYMMETRIC else AGREEMENT

    def metadata(self) -> dict[str, Any]:
        """Return the KeyMetadata as AWS shapes it."""
        agrees = self.usage == AGREEMENT
        algorithms = "KeyAgreementAlgorithms" if agrees else "EncryptionAlgorithms"
        record = {
            "AWSAccountId": self.account,
            "KeyId": self.id,
            "Arn": self.arn,
            "CreationDate": self.created,
            "Enabled": self.state == "Enabled",
            "Description": self.description,
            "KeyUsage": self.usage,
            "KeyState": self.state,
            "Origin": "AWS_KMS",
            "KeyManager": "CUSTOMER",
            "CustomerMasterKeySpec": self.spec,
            "KeySpec": self.spec,
            algorithms: ["ECDH"] if agrees else [SYMMETRIC],
            "MultiRegion": False,
        }
        return record | ({"DeletionDate": self.deletion} if self.deletion else {})

    def record(self) -> dict[str, Any]:
        """Return the key for the state file, its secrets included."""
        private = self.agreement_key
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return plain | {
            "materials": [encode_secret(item) for item in self.materials],
            "agreement_key": encode_private_key(private) if private else None,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> KmsKey:
        """Return the key that ``record`` describes; raises KeyError, TypeError or ValueError."""
        private = record["agreement_key"]
        secret = {
            "materials": [decode_secret(text) for text in record["materials"]],
            "agreement_key": decode_private_key(private) if private else None,
        }
        return cls(**(record | secret))

    def __reduce__(self) -> NoReturn:
        msg = "a key is written to the state file and nowhere else"
        raise TypeError(msg)


def default_policy(account: str, partition: str) -> str:
    """Return the policy that AWS gives a key made without one: the account's IAM decides."""
    statement = {
        "Sid": "Enable IAM User Permissions",
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:{partition}:iam::{account}:root"},
        "Action": "kms:*",
        "Resource": "*",
    }
    return json.dumps({"Version": "2012-10-17", "Id": "key-default-1", "Statement": [statement]})


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

    def add(self, key: KmsKey) -> None:
        """Keep a new key."""
        with self.changing():
            self._keys[key.id] = key

    def find(self, account: str, region: str, key_id: str) -> KmsKey | None:
        """Return the key with this bare id, or None."""
        with self._lock:
            self._expire()
            key = self._keys.get(key_id)
        return key if key and (key.account, key.region) == (account, region) else None

    def listed(self, account: str, region: str) -> list[KmsKey]:
        """Return the keys of one account in one region."""
        with self._lock:
            self._expire()
            keys = list(self._keys.values())
        return [key for key in keys if (key.account, key.region) == (account, region)]

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
        now = time.time()
        over = {key.id for key in self._keys.values() if key.deletion and key.deletion <= now}
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
