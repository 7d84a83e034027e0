from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from casemate import wire
from casemate.envelope.header import RequestHeader, ResponseHeader, parse_request_header
from casemate.errors import Code, EnvelopeError
from tests.support.envelope import BLOB, KEY_ARN

HPKE = RequestHeader(
    key_mode=1,
    request_id=b"r" * 16,
    sequence=5,
    not_before=1000,
    not_after=2000,
    audience=b"a" * 32,
    instance_id=b"i" * 16,
    key_commitment=b"c" * 32,
    wrapped_key=b"k" * 16 + b"e" * 1168,
)
KMS = replace(HPKE, key_mode=2, wrapped_key=wire.lp(KEY_ARN.encode()) + BLOB)


def refused(data: bytes) -> Code:
    with pytest.raises(EnvelopeError) as caught:
        parse_request_header(data)
    return caught.value.code


@pytest.mark.parametrize("header", [HPKE, KMS, replace(KMS, instance_id=bytes(16))])
def test_what_is_encoded_is_parsed(header: RequestHeader) -> None:
    assert parse_request_header(header.encode()) == header


def test_the_wrapped_key_of_each_mode_is_taken_apart() -> None:
    assert (HPKE.key_id, HPKE.encapsulation) == (b"k" * 16, b"e" * 1168)
    assert (KMS.key_arn, KMS.ciphertext_blob) == (KEY_ARN, BLOB)


def test_every_truncation_is_refused() -> None:
    for header in (HPKE.encode(), KMS.encode()):
        for length in range(len(header)):
            assert refused(header[:length]) == Code.MALFORMED


def test_bytes_after_the_wrapped_key_are_refused() -> None:
    assert refused(HPKE.encode() + b"\0") == Code.MALFORMED


@pytest.mark.parametrize("version", [0, 2, 255])
def test_other_versions_are_named_as_such(version: int) -> None:
    assert refused(bytes([version]) + HPKE.encode()[1:]) == Code.UNSUPPORTED_VERSION


ALIAS = "arn:aws:kms:eu-central-1:111122223333:alias/data"
MULTI_REGION = "arn:aws:kms:eu-central-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "header",
    [
        replace(HPKE, key_mode=0),
        replace(HPKE, key_mode=3),
        replace(HPKE, sequence=1 << 20),
        replace(HPKE, instance_id=bytes(16)),
        replace(HPKE, wrapped_key=HPKE.wrapped_key[:-1]),
        replace(HPKE, wrapped_key=HPKE.wrapped_key + b"\0"),
        replace(HPKE, wrapped_key=b""),
        replace(KMS, wrapped_key=b"abc"),
        replace(KMS, wrapped_key=struct.pack(">I", 0) + BLOB),
        replace(KMS, wrapped_key=struct.pack(">I", 1 << 31) + BLOB),
        replace(KMS, wrapped_key=wire.lp(KEY_ARN.encode())),
        replace(KMS, wrapped_key=wire.lp(KEY_ARN.encode()) + bytes(6145)),
        replace(KMS, wrapped_key=wire.lp(ALIAS.encode()) + BLOB),
        replace(KMS, wrapped_key=wire.lp(MULTI_REGION.encode()) + BLOB),
        replace(KMS, wrapped_key=wire.lp(KEY_ARN.encode() + b"\n") + BLOB),
        replace(KMS, wrapped_key=wire.lp(b"\xff" * 70) + BLOB),
    ],
)
def test_fields_out_of_bounds_are_malformed(header: RequestHeader) -> None:
    assert refused(header.encode()) == Code.MALFORMED


def test_response_header() -> None:
    header = ResponseHeader(b"n" * 32, b"d" * 48)
    assert len(header.encode()) == 81
    assert ResponseHeader.parse(header.encode()) == header
    for bad in (b"", header.encode()[:-1], header.encode() + b"\0", b"\2" + header.encode()[1:]):
        with pytest.raises(ValueError, match="not a response header"):
            ResponseHeader.parse(bad)
