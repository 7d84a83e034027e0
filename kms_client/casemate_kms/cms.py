"""Opening of the CMS envelope in which KMS returns a key: ``CiphertextForRecipient`` (SPEC 10.4).

CMS authenticates nothing here: the public key is in a document that the host carries, so anyone can
seal any content to it, and a flipped bit may change what opens. The result is therefore only a
candidate, to be used after its commitment matched (SPEC 5.4, 8.3).
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from casemate import limits
from casemate.errors import Code, KeyReleaseError
from casemate_kms.ber import (
    CONTEXT_0,
    CONTEXT_0_CONSTRUCTED,
    INTEGER,
    OCTETS,
    SEQUENCE,
    SET,
    BerError,
    Reader,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa

_CEK_BYTES: Final = 32
_BLOCK: Final = 16
_VERSION: Final = b"\x02"

# Identifiers have one encoding each, so they are compared as bytes (RFC 5652, 8017, 3565).
_ENVELOPED_DATA: Final = bytes.fromhex("06092a864886f70d010703")
_DATA: Final = bytes.fromhex("06092a864886f70d010701")
_OAEP_SHA256_MGF1_SHA256: Final = bytes.fromhex(
    "303c06092a864886f70d010107302f"
    "a00f300d06096086480165030402010500"
    "a11c301a06092a864886f70d010108300d06096086480165030402010500"
)
_AES256_CBC: Final = bytes.fromhex("301d060960864801650304012a0410")  # the 16-byte IV follows

_OAEP: Final = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)


@dataclass(frozen=True, slots=True)
class _Envelope:
    key_identifier: bytes
    encrypted_key: bytes
    iv: bytes
    ciphertext: bytes


def open_enveloped(ber: bytes, private_key: rsa.RSAPrivateKey) -> bytes:
    """Return the content of an envelope sealed to ``private_key``: any length, not authenticated.

    Raises KeyReleaseError(KEY_RELEASE_INVALID), with one text for every cause: neither layout, nor
    OAEP, nor padding can be told apart (no padding oracle).
    """
    try:
        envelope = _parse(ber)
    except BerError:
        envelope = None
    if envelope is None or not _addressed(envelope, private_key):
        raise _refused()
    content = _decrypt(envelope, private_key)
    if content is None:
        raise _refused()
    return content


def _refused() -> KeyReleaseError:
    return KeyReleaseError(Code.KEY_RELEASE_INVALID, "the key's envelope does not open")


def _parse(ber: bytes) -> _Envelope:
    if len(ber) > limits.KMS_ENVELOPE_MAX:
        raise BerError("too long")
    reader = Reader(ber)
    with reader.constructed(SEQUENCE):
        reader.literal(_ENVELOPED_DATA)
        with reader.constructed(CONTEXT_0_CONSTRUCTED), reader.constructed(SEQUENCE):
            _version(reader)
            with reader.constructed(SET), reader.constructed(SEQUENCE):
                key_identifier, encrypted_key = _recipient(reader)
            with reader.constructed(SEQUENCE):
                iv, ciphertext = _content(reader)
    reader.finish()
    return _Envelope(key_identifier, encrypted_key, iv, ciphertext)


def _version(reader: Reader) -> None:
    if reader.primitive(INTEGER) != _VERSION:
        raise BerError("version")


def _recipient(reader: Reader) -> tuple[bytes, bytes]:
    """Read a KeyTransRecipientInfo: its key identifier and the encrypted key."""
    _version(reader)
    key_identifier = reader.primitive(CONTEXT_0)
    reader.literal(_OAEP_SHA256_MGF1_SHA256)
    return key_identifier, reader.primitive(OCTETS)


def _content(reader: Reader) -> tuple[bytes, bytes]:
    """Read an EncryptedContentInfo: IV and ciphertext, at least one whole block."""
    reader.literal(_DATA)
    reader.literal(_AES256_CBC)
    iv = reader.raw(_BLOCK)
    ciphertext = _octets(reader)
    if not ciphertext or len(ciphertext) % _BLOCK:
        raise BerError("not whole blocks")
    return iv, ciphertext


def _octets(reader: Reader) -> bytes:
    """Read [0] IMPLICIT OCTET STRING, primitive or in chunks; AWS sends both."""
    if reader.tag() == CONTEXT_0:
        return reader.primitive(CONTEXT_0)
    chunks = []
    with reader.constructed(CONTEXT_0_CONSTRUCTED):
        while not reader.exhausted:
            chunks.append(reader.primitive(OCTETS))
    return b"".join(chunks)


def _addressed(envelope: _Envelope, private_key: rsa.RSAPrivateKey) -> bool:
    public = private_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    state = hashes.Hash(hashes.SHA256())
    state.update(public)
    named = hmac.compare_digest(envelope.key_identifier, state.finalize())
    return named and len(envelope.encrypted_key) == private_key.key_size // 8


def _decrypt(envelope: _Envelope, private_key: rsa.RSAPrivateKey) -> bytes | None:
    """Decrypt both layers; None if either fails. A bad key costs the same work as a good one."""
    substitute = secrets.token_bytes(_CEK_BYTES)
    try:
        key = private_key.decrypt(envelope.encrypted_key, _OAEP)
    except ValueError:
        key = b""
    opened = len(key) == _CEK_BYTES
    cipher = Cipher(algorithms.AES256(key if opened else substitute), modes.CBC(envelope.iv))
    decryptor = cipher.decryptor()
    padded = decryptor.update(envelope.ciphertext) + decryptor.finalize()
    pad = _pad_length(padded)
    return padded[: len(padded) - pad] if opened and pad else None


def _pad_length(padded: bytes) -> int:
    """Return the PKCS#7 padding's length, 0 if it is wrong; always compares all patterns."""
    block = padded[-_BLOCK:]
    return sum(
        length * hmac.compare_digest(block[-length:], bytes([length]) * length)
        for length in range(1, _BLOCK + 1)
    )
