"""Ciphertext blobs: AES-256-GCM, bound to key, version and encryption context.

``key id (36) || version (4) || nonce (12) || ciphertext and tag``. AWS documents no format of its
own; clients treat blobs as opaque.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from casemate_devkit.kms.errors import KmsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KEY_ID: Final = 36
_HEAD: Final = _KEY_ID + 4
_NONCE: Final = 12
_TAG: Final = 16


def key_id(blob: bytes) -> str:
    """Return the id of the key that a blob names."""
    return blob[:_KEY_ID].decode("ascii", errors="replace")


def seal(
    name: str, materials: Sequence[bytes], plaintext: bytes, context: Mapping[str, str]
) -> bytes:
    """Return ``plaintext`` as a blob under the last of ``materials``."""
    head = name.encode() + (len(materials) - 1).to_bytes(4, "big")
    nonce = os.urandom(_NONCE)
    sealed = AESGCM(materials[-1]).encrypt(nonce, plaintext, head + _bound(context))
    return head + nonce + sealed


def open_blob(
    name: str, materials: Sequence[bytes], blob: bytes, context: Mapping[str, str]
) -> bytes:
    """Return the plaintext of a blob; raises InvalidCiphertextException."""
    head, nonce, sealed = blob[:_HEAD], blob[_HEAD : _HEAD + _NONCE], blob[_HEAD + _NONCE :]
    version = int.from_bytes(head[_KEY_ID:], "big")
    if key_id(blob) != name or len(sealed) < _TAG or version >= len(materials):
        raise KmsError("InvalidCiphertextException", "")
    try:
        return AESGCM(materials[version]).decrypt(nonce, sealed, head + _bound(context))
    except InvalidTag:
        raise KmsError("InvalidCiphertextException", "") from None


def _bound(context: Mapping[str, str]) -> bytes:
    """Return the context in one unambiguous form."""
    return json.dumps(dict(context), sort_keys=True).encode()
