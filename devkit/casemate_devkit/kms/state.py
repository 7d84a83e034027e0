"""The state file: what lets keys and ciphertexts outlive the process.

It holds secrets in the clear; a double is for tests. Whoever can read the file has every key.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from moto.kms.utils import ECDSAPrivateKey, RSAPrivateKey

from casemate_devkit.kms.grants import Grant

if TYPE_CHECKING:
    from pathlib import Path

    from moto.kms.models import Key, KmsBackend

STATE_FILE: Final = "state.json"
ROTATION_DAYS: Final = 365  # AWS's default
_VERSION: Final = 2
_STATES: Final = {"Disabled", "Enabled", "PendingDeletion"}

Record = dict[str, Any]


@dataclass(slots=True, eq=False)
class Beside:
    """What moto's key has no place for: earlier material, oldest first; the rotation period."""

    older: list[bytes] = field(default_factory=list, repr=False)
    rotation_days: int = ROTATION_DAYS


def write_state(path: Path, state: Record) -> None:
    """Replace the file in one step, readable by the owner only."""
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps({"version": _VERSION} | state))
    partial.replace(path)


def read_state(path: Path) -> Record:
    """Return what ``write_state`` wrote; raises ValueError."""
    state = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.get("version") != _VERSION:
        raise ValueError(f"not version {_VERSION} of the state")
    return state


def key_record(key: Key, backend: KmsBackend, beside: Beside) -> Record:
    """Return a key for the state file, its secrets included."""
    return {
        "account": key.account_id,
        "region": key.region,
        "id": key.id,
        "policy": key.policy,
        "usage": key.key_usage,
        "spec": key.key_spec,
        "description": key.description,
        "created": key.creation_date,
        "state": key.key_state,
        "deletion": key.deletion_date.isoformat() if key.deletion_date else None,
        "rotates": key.key_rotation_status,
        "rotation_days": beside.rotation_days,
        "rotations": key.rotations,
        "materials": [_encode(item) for item in (*beside.older, key.key_material)],
        "private_key": _encode_private_key(key) if is_pair(key.key_spec) else None,
        "tags": backend.tagger.get_tag_dict_for_resource(key.id),
        "aliases": list(key.aliases),
        "grants": [grant.record() for grant in key.grants.values() if isinstance(grant, Grant)],
    }


def restore_key(record: Record, backend: KmsBackend) -> Beside:
    """Put the key that ``record`` describes back into ``backend``.

    Returns what is kept beside moto. Raises KeyError, TypeError or ValueError.
    """
    if record["state"] not in _STATES:
        raise ValueError("a key has an unknown state")
    key = _new_key(record, backend)
    key.arn = key.arn.removesuffix(key.id) + record["id"]
    key.id = record["id"]
    key.creation_date = record["created"]
    key.key_state, key.enabled = record["state"], record["state"] == "Enabled"
    if record["deletion"] is not None:
        key.deletion_date = dt.datetime.fromisoformat(record["deletion"])
    key.key_rotation_status, key.rotations = record["rotates"], list(record["rotations"])
    *older, key.key_material = [_decode(text) for text in record["materials"]]
    backend.keys[key.id] = key
    backend.tag_resource(key.arn, record["tags"])
    for name in record["aliases"]:
        backend.create_alias(key.id, name)
    for item in record["grants"]:
        grant = Grant(key.arn, item)
        key.grants[grant.id] = grant
    return Beside(older, record["rotation_days"])


def _new_key(record: Record, backend: KmsBackend) -> Key:
    """Return a new key of moto with the record's private key.

    moto generates one for every key, long RSA keys slowly: so a short one is replaced.
    """
    spec = record["spec"]
    quick = "RSA_2048" if spec.startswith("RSA_") else spec if is_pair(spec) else "ECC_NIST_P256"
    key = backend.create_key(record["policy"], record["usage"], quick, record["description"], None)
    del backend.keys[key.id]
    key.key_spec = spec
    made = key.private_key
    if is_pair(spec):
        private = load_der_private_key(_decode(record["private_key"]), None)
        if isinstance(made, RSAPrivateKey) and isinstance(private, rsa.RSAPrivateKey):
            made.key_size, made.private_key = private.key_size, private
        elif isinstance(made, ECDSAPrivateKey) and isinstance(private, ec.EllipticCurvePrivateKey):
            made.private_key = private
        else:
            raise ValueError("a private key is not of its key's kind")
    return key


def is_pair(spec: str) -> bool:
    """Whether keys of this spec have a public half."""
    return spec.startswith(("ECC_", "RSA_"))


def _encode_private_key(key: Key) -> str:
    made = key.private_key
    if not isinstance(made, (RSAPrivateKey, ECDSAPrivateKey)):
        raise TypeError("moto keeps a private key in another way")
    der = made.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return _encode(der)


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _decode(text: str) -> bytes:
    """Return the bytes of strict base64; raises ValueError."""
    return base64.b64decode(text, validate=True)
