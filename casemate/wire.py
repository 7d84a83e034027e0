"""Length prefixes, domain labels, the hash and the key derivation of SPEC 1."""

from __future__ import annotations

import functools
import hashlib
import struct
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

if TYPE_CHECKING:
    from collections.abc import Iterable

Buffer = bytes | bytearray | memoryview
Pieces = list[Buffer] | tuple[Buffer, ...]  # what lies one after the other, without being joined

HASH_BYTES = 48
_LENGTH = struct.Struct(">I")
KEY_BYTES = 32
_SHA384 = hashes.SHA384()
_STATE = hashlib.sha384()  # to copy: OpenSSL looks the algorithm up for each new one


def lp(*parts: Buffer) -> bytes:
    """Return ``LP(part)`` for each part, concatenated (SPEC 1.1)."""
    prefixed = b""
    for part in parts:
        prefixed += _LENGTH.pack(len(part)) + part
    return prefixed


def lp_list(parts: Iterable[bytes]) -> bytes:
    """Return ``LP(LP(part)...)`` (SPEC 1.1, 3.6)."""
    return lp(lp(*parts))


def digest(*parts: Buffer) -> bytes:
    """Return ``H`` (SHA-384, 48 bytes) of one or more concatenated parts (SPEC 1.2)."""
    state = _STATE.copy()
    for part in parts:
        state.update(part)
    return state.digest()


@functools.cache
def label(name: str) -> bytes:
    """Return ``D(name)`` (SPEC 1.3)."""
    return b"casemate/v1 " + name.encode("ascii") + b"\x00"


def extract(data_key: bytes) -> bytes:
    """Return ``prk(data_key)``, 48 bytes, for a 32-byte data key (SPEC 1.4)."""
    return HKDF.extract(_SHA384, b"casemate/v1", data_key)


def expand(prk: bytes, name: str, *context: bytes) -> bytes:
    """Return ``X(prk, name, context...)``, 32 bytes (SPEC 1.4)."""
    info = label(name) + lp(*context)
    return HKDFExpand(_SHA384, KEY_BYTES, info).derive(prk)
