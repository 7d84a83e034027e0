"""CMS envelopes as KMS writes them, and every wrong one that a test asks for (SPEC 10.4).

Independent of ``casemate_kms`` and ``casemate_devkit``: the layout is written out from RFC 5652.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from tests.support.der import length

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding

ENVELOPED_DATA = "1.2.840.113549.1.7.3"
DATA = "1.2.840.113549.1.7.1"
RSA = "1.2.840.113549.1.1.1"
OAEP = "1.2.840.113549.1.1.7"
MGF1 = "1.2.840.113549.1.1.8"
SHA1 = "1.3.14.3.2.26"
SHA256 = "2.16.840.1.101.3.4.2.1"
AES128_CBC = "2.16.840.1.101.3.4.1.2"
AES256_CBC = "2.16.840.1.101.3.4.1.42"
AES256_GCM = "2.16.840.1.101.3.4.1.46"
NULL = b"\x05\x00"


def value(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return bytes([tag]) + length(len(content)) + content


def indefinite(tag: int, *parts: bytes) -> bytes:
    return bytes([tag, 0x80]) + b"".join(parts) + b"\x00\x00"


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray([40 * first + second])
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        out += bytes(reversed(groups))
    return value(0x06, bytes(out))


def oaep_identifier(hash_oid: str) -> bytes:
    digest = value(0x30, oid(hash_oid), NULL)
    mask = value(0x30, oid(MGF1), digest)
    return value(0x30, oid(OAEP), value(0x30, value(0xA0, digest), value(0xA1, mask)))


def oaep(algorithm: hashes.HashAlgorithm) -> AsymmetricPadding:
    return padding.OAEP(padding.MGF1(algorithm), algorithm, None)


def pkcs7(content: bytes) -> bytes:
    pad = 16 - len(content) % 16
    return content + bytes([pad]) * pad


@dataclass(frozen=True)
class Envelope:
    """What goes into an envelope; the defaults are what AWS sends."""

    content: bytes
    public_der: bytes
    version: int = 2
    recipient_version: int = 2
    recipient_tag: int = 0x80
    key_identifier: bytes | None = None
    recipients: int = 1
    transport_identifier: bytes = oaep_identifier(SHA256)
    transport: AsymmetricPadding | None = None  # None: OAEP with SHA-256
    encrypted_key: bytes | None = None
    cek_bytes: int = 32
    content_type: str = DATA
    content_cipher: str = AES256_CBC
    iv: bytes = b"\x5a" * 16
    padded: bytes | None = None
    ciphertext: bytes | None = None
    chunk: int | None = 16  # bytes for each chunk; None: primitive [0]
    definite: bool = False
    unprotected: bytes = b""
    trailing: bytes = b""

    def but(self, **changes: object) -> Envelope:
        return replace(self, **changes)  # type: ignore[arg-type]

    def encode(self) -> bytes:
        wrap = value if self.definite else indefinite
        cek = os.urandom(self.cek_bytes)
        recipient = self._recipient(cek)
        recipients = value(0x31, *[recipient] * self.recipients)
        enveloped = wrap(
            0x30,
            value(0x02, bytes([self.version])),
            recipients,
            wrap(0x30, *self._content(cek)),
            self.unprotected,
        )
        return wrap(0x30, oid(ENVELOPED_DATA), wrap(0xA0, enveloped)) + self.trailing

    def _recipient(self, cek: bytes) -> bytes:
        public = load_der_public_key(self.public_der)
        assert isinstance(public, RSAPublicKey)
        transport = self.transport or oaep(hashes.SHA256())
        identifier = self.key_identifier or sha256(self.public_der).digest()
        return value(
            0x30,
            value(0x02, bytes([self.recipient_version])),
            value(self.recipient_tag, identifier),
            self.transport_identifier,
            value(0x04, self.encrypted_key or public.encrypt(cek, transport)),
        )

    def _content(self, cek: bytes) -> list[bytes]:
        algorithm = value(0x30, oid(self.content_cipher), value(0x04, self.iv))
        return [oid(self.content_type), algorithm, self._octets(self._encrypt(cek))]

    def _encrypt(self, cek: bytes) -> bytes:
        if self.ciphertext is not None:
            return self.ciphertext
        padded = pkcs7(self.content) if self.padded is None else self.padded
        iv = self.iv.ljust(16, b"\x00")[:16]
        encryptor = Cipher(algorithms.AES(cek), modes.CBC(iv)).encryptor()
        return encryptor.update(padded) + encryptor.finalize()

    def _octets(self, ciphertext: bytes) -> bytes:
        if self.chunk is None:
            return value(0x80, ciphertext)
        wrap = value if self.definite else indefinite
        step = self.chunk
        pieces = [ciphertext[at : at + step] for at in range(0, len(ciphertext), step)]
        return wrap(0xA0, *[value(0x04, piece) for piece in pieces])


def spki(public_key: RSAPublicKey) -> bytes:
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
