"""The envelope's skeleton is AWS's, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from casemate_devkit.kms.cms import assemble, seal_enveloped
from casemate_kms.cms import open_enveloped

VECTORS = Path(__file__).parents[3] / "vectors" / "cms"
CHUNKED = ["aws_samples_eks_wallet", "aws_sdk_c_chunked", "edgebit_sdk_go", "enclaver_pkcs7_rs"]


@pytest.mark.parametrize("name", CHUNKED)
def test_skeleton_equals_real_envelopes(name: str) -> None:
    real = (VECTORS / f"{name}.ber").read_bytes()
    identifier = real[real.index(b"\x80\x20") + 2 :][:32]
    encrypted_key = real[real.index(b"\x04\x82\x01\x00") + 4 :][:256]
    iv_at = real.index(bytes.fromhex("060960864801650304012a0410")) + 13
    iv, rest = real[iv_at : iv_at + 16], real[iv_at + 16 :]
    head = 5 if rest[3] == 0x81 else 4  # a080 04 length
    ciphertext = rest[head : rest[head - 1] + head]
    assert assemble(identifier, encrypted_key, iv, ciphertext) == real


@pytest.mark.parametrize("size", [1, 15, 16, 32, 1024])
def test_sealed_opens_with_the_strict_opener(size: int) -> None:
    key = rsa.generate_private_key(65537, 2048)
    plaintext = (bytes(range(256)) * 4)[:size]
    assert open_enveloped(seal_enveloped(key.public_key(), plaintext), key) == plaintext
