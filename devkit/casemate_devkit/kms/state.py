"""The state file: what lets keys and ciphertexts outlive the process.

It holds secrets in the clear; a double is for tests. Whoever can read the file has every key.
"""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

if TYPE_CHECKING:
    from pathlib import Path

STATE_FILE: Final = "state.json"
_VERSION: Final = 1


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the file in one step, readable by the owner only."""
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps({"version": _VERSION} | state))
    partial.replace(path)


def read_state(path: Path) -> dict[str, Any]:
    """Return what ``write_state`` wrote; raises ValueError."""
    state = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.get("version") != _VERSION:
        raise ValueError("not version 1 of the state")
    return state


def encode_secret(value: bytes) -> str:
    """Return base64."""
    return base64.b64encode(value).decode()


def decode_secret(text: str) -> bytes:
    """Return the bytes of strict base64; raises ValueError."""
    return base64.b64decode(text, validate=True)


def encode_private_key(key: ec.EllipticCurvePrivateKey) -> str:
    """Return PKCS#8 in base64."""
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return encode_secret(der)


def decode_private_key(text: str) -> ec.EllipticCurvePrivateKey:
    """Return the key of ``encode_private_key``; raises ValueError."""
    key = load_der_private_key(decode_secret(text), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not a key of an elliptic curve")  # noqa: TRY004 - the file is wrong
    return key
