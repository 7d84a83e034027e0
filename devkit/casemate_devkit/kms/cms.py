"""The envelope of ``CiphertextForRecipient``, byte for byte as AWS KMS writes it (SPEC 10.4).

BER ContentInfo and EnvelopedData of indefinite length, one KeyTransRecipientInfo, content in one
chunk below a constructed ``[0]``. Nothing in it is authenticated; that is AWS's format.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

_ENVELOPED_DATA = bytes.fromhex("06092a864886f70d010703")
_DATA = bytes.fromhex("06092a864886f70d010701")
_AES_256_CBC = bytes.fromhex("060960864801650304012a")
_RSAES_OAEP = bytes.fromhex("06092a864886f70d010107")
_MGF1 = bytes.fromhex("06092a864886f70d010108")
_SHA_256 = bytes.fromhex("0609608648016503040201")
_VERSION_2 = bytes.fromhex("020102")
_END = b"\x00\x00"
_IV_BYTES = 16


def seal_enveloped(public_key: RSAPublicKey, plaintext: bytes) -> bytes:
    """Return ``plaintext`` sealed to ``public_key``; only its private key opens it."""
    spki = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    identifier = hashes.Hash(hashes.SHA256())
    identifier.update(spki)
    key, iv = os.urandom(32), os.urandom(_IV_BYTES)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    padder = PKCS7(algorithms.AES.block_size).padder()
    padded = padder.update(plaintext) + padder.finalize()
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(iv)).encryptor()
    ciphertext = encryptor.update(padded) + encryptor.finalize()
    return assemble(identifier.finalize(), public_key.encrypt(key, oaep), iv, ciphertext)


def assemble(identifier: bytes, encrypted_key: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    """Return the envelope around finished parts (RFC 5652 section 6, RFC 8017 appendix A.2.1)."""
    sha_256 = _der(0x30, _SHA_256, b"\x05\x00")
    mgf1 = _der(0x30, _MGF1, sha_256)
    oaep = _der(0x30, _RSAES_OAEP, _der(0x30, _der(0xA0, sha_256), _der(0xA1, mgf1)))
    recipient = _der(0x30, _VERSION_2, _der(0x80, identifier), oaep, _der(0x04, encrypted_key))
    cipher = _der(0x30, _AES_256_CBC, _der(0x04, iv))
    content = _open(0x30, _DATA, cipher, _open(0xA0, _der(0x04, ciphertext)))
    enveloped = _open(0x30, _VERSION_2, _der(0x31, recipient), content)
    return _open(0x30, _ENVELOPED_DATA, _open(0xA0, enveloped))


def initialisation_vector(envelope: bytes) -> int:
    """Return where the initialisation vector of an envelope begins."""
    return envelope.index(_AES_256_CBC) + len(_AES_256_CBC) + 2


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:  # noqa: PLR2004 - X.690 8.1.3.4
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _open(tag: int, *parts: bytes) -> bytes:
    return bytes([tag, 0x80]) + b"".join(parts) + _END
