"""The envelope of SPEC 10.4: genuine ones open, everything else is one error (A51, A52)."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from casemate import limits
from casemate.errors import Code, KeyReleaseError
from casemate_kms.cms import open_enveloped
from tests.support.cms_builder import (
    AES128_CBC,
    AES256_GCM,
    ENVELOPED_DATA,
    NULL,
    OAEP,
    RSA,
    SHA1,
    Envelope,
    oaep,
    oaep_identifier,
    oid,
    pkcs7,
    spki,
    value,
)

GENUINE = Path(__file__).parents[2] / "vectors" / "cms"
KEY = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
CONTENT = bytes(range(32))
GOOD = Envelope(CONTENT, spki(KEY.public_key()))


def genuine(name: str) -> tuple[bytes, rsa.RSAPrivateKey]:
    key = load_pem_private_key((GENUINE / f"{name}.key.pem").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return (GENUINE / f"{name}.ber").read_bytes(), key


def refused(ber: bytes, key: rsa.RSAPrivateKey = KEY) -> None:
    with pytest.raises(KeyReleaseError) as caught:
        open_enveloped(ber, key)
    assert caught.value.code is Code.KEY_RELEASE_INVALID
    assert caught.value.detail == "the key's envelope does not open"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "start"),
    [
        (
            "edgebit_sdk_go",
            bytes.fromhex("3be82c440f06cb4d44c4c2ec3bf30d472407d3a9125aa4c1842b98f6bdd26e41"),
        ),
        ("enclaver_pkcs7_rs", b"Hello, World"),
        ("aws_samples_eks_wallet", b'{"secret":"9779d2b8f0bc495b'),
    ],
)
def test_genuine_envelopes_open(name: str, start: bytes) -> None:
    assert open_enveloped(*genuine(name)).startswith(start)


@pytest.mark.parametrize("name", ["aws_sdk_c_chunked", "aws_sdk_c_primitive"])
def test_genuine_envelopes_for_another_key_are_refused(name: str) -> None:
    refused((GENUINE / f"{name}.ber").read_bytes())


@pytest.mark.parametrize("definite", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 16, 17, 4096])
@pytest.mark.parametrize("size", [0, 15, 16, 32, 250])
def test_every_form_of_lengths_and_chunks_opens(
    definite: bool, chunk: int | None, size: int
) -> None:
    content = bytes(size)
    ber = GOOD.but(content=content, definite=definite, chunk=chunk).encode()
    assert open_enveloped(ber, KEY) == content


PADDED = CONTENT[:16]
BAD_PADDING = [
    PADDED[:-1] + b"\x00",
    PADDED[:-1] + b"\x11",
    PADDED[:-1] + b"\xff",
    PADDED[:-2] + b"\x01\x02",
    b"\x0f" + bytes([16]) * 15,
]
REFUSED = {
    "version 0": GOOD.but(version=0),
    "recipient version 0": GOOD.but(recipient_version=0),
    "issuer and serial": GOOD.but(recipient_tag=0x30),
    "no recipient": GOOD.but(recipients=0),
    "two recipients": GOOD.but(recipients=2),
    "another key's identifier": GOOD.but(key_identifier=bytes(32)),
    "short key identifier": GOOD.but(key_identifier=bytes(20)),
    "PKCS#1 v1.5": GOOD.but(
        transport_identifier=value(0x30, oid(RSA), NULL), transport=padding.PKCS1v15()
    ),
    "PKCS#1 v1.5 called OAEP": GOOD.but(transport=padding.PKCS1v15()),
    "OAEP with SHA-1": GOOD.but(
        transport_identifier=oaep_identifier(SHA1),
        transport=oaep(hashes.SHA1()),
    ),
    "OAEP with SHA-1 called SHA-256": GOOD.but(transport=oaep(hashes.SHA1())),
    "OAEP by default": GOOD.but(transport_identifier=value(0x30, oid(OAEP), value(0x30))),
    "AES-128": GOOD.but(content_cipher=AES128_CBC, cek_bytes=16),
    "AES-128 called AES-256": GOOD.but(cek_bytes=16),
    "AES-256-GCM": GOOD.but(content_cipher=AES256_GCM),
    "IV of 12 bytes": GOOD.but(iv=bytes(12)),
    "IV of 17 bytes": GOOD.but(iv=bytes(17)),
    "content type": GOOD.but(content_type=ENVELOPED_DATA),
    "not whole blocks": GOOD.but(ciphertext=bytes(31)),
    "no content": GOOD.but(ciphertext=b""),
    "no content, primitive": GOOD.but(ciphertext=b"", chunk=None),
    "encrypted key too short": GOOD.but(encrypted_key=bytes(255)),
    "encrypted key too long": GOOD.but(encrypted_key=bytes(257)),
    "encrypted key above the modulus": GOOD.but(encrypted_key=b"\xff" * 256),
    "unprotected attributes": GOOD.but(unprotected=value(0xA1)),
    "trailing byte": GOOD.but(trailing=b"\x00"),
    "trailing end": GOOD.but(trailing=b"\x00\x00"),
    "too long": GOOD.but(content=bytes(limits.KMS_ENVELOPE_MAX), chunk=None),
    **{f"padding {pad.hex()}": GOOD.but(padded=pad) for pad in BAD_PADDING},
}


@pytest.mark.parametrize("envelope", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("definite", [False, True])
def test_any_other_envelope_is_refused_with_one_text(envelope: Envelope, definite: bool) -> None:
    refused(envelope.but(definite=definite).encode())


def test_the_key_of_another_enclave_does_not_open() -> None:
    refused(GOOD.encode(), OTHER)


@pytest.mark.parametrize("definite", [False, True])
def test_every_truncation_is_refused(definite: bool) -> None:
    ber = GOOD.but(definite=definite).encode()
    for end in range(len(ber)):
        refused(ber[:end])


@pytest.mark.parametrize(
    "ber",
    [
        b"\x30\x80" * 2000,
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x88" + b"\xff" * 8,
        b"\x30\xff",
        b"\x3f\x81\x00",
        GOOD.encode()[:-1] + b"\x01",
        GOOD.encode()[:-4] + b"\x05\x00\x00\x00",
        GOOD.encode().replace(b"\x02\x01\x02", b"\x02\x02\x00\x02"),
    ],
)
def test_lengths_and_tags_from_elsewhere_are_refused(ber: bytes) -> None:
    refused(ber)


def test_content_under_the_substitute_for_a_failed_key_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = bytes(32)
    monkeypatch.setattr(secrets, "token_bytes", lambda _size: key)
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(GOOD.iv)).encryptor()
    ciphertext = encryptor.update(pkcs7(CONTENT)) + encryptor.finalize()
    refused(GOOD.but(encrypted_key=bytes(256), ciphertext=ciphertext).encode())
    refused(GOOD.but(cek_bytes=16, ciphertext=ciphertext).encode())


def test_a_failed_key_costs_the_content_decryption_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[bytes] = []
    module = open_enveloped.__globals__
    genuine_length = module["_pad_length"]

    def counted(padded: bytes) -> int:
        calls.append(padded)
        length: int = genuine_length(padded)
        return length

    monkeypatch.setitem(module, "_pad_length", counted)
    refused(GOOD.but(encrypted_key=bytes(256)).encode())
    refused(GOOD.but(cek_bytes=16).encode())
    assert len(calls) == 2
