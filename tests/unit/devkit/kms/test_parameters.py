"""Request parameters: nothing is taken for something else."""

from __future__ import annotations

import json

import pytest

from casemate_devkit.kms.errors import KmsError
from casemate_devkit.kms.parameters import decode_parameters, encode_answer, operation_name

KEY = "6c1f6aae-9f1c-4c9f-8b1c-6f3f1f1f1f1f"


def refused(operation: str, body: bytes) -> str:
    with pytest.raises(KmsError) as caught:
        decode_parameters(operation, body)
    return caught.value.kind


def test_blobs_become_bytes() -> None:
    body = {"KeyId": KEY, "Plaintext": "aGk=", "EncryptionContext": {"a": "b"}}
    decoded = decode_parameters("Encrypt", json.dumps(body).encode())
    assert decoded == body | {"Plaintext": b"hi"}
    assert decode_parameters("ListKeys", b"") == {}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"\xff",
        b'{"Limit": 1, "Limit": 2}',
    ],
)
def test_bodies_that_are_no_object(body: bytes) -> None:
    assert refused("ListKeys", body) == "SerializationException"


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("Encrypt", {"KeyId": KEY}),
        ("Encrypt", {"KeyId": KEY, "Plaintext": None}),
        ("Encrypt", {"KeyId": KEY, "Plaintext": 1}),
        ("Encrypt", {"KeyId": KEY, "Plaintext": "aGk=", "Recipient": {}}),
        ("Encrypt", {"KeyId": KEY, "Plaintext": "aGk=", "EncryptionContext": {"a": 1}}),
        ("Encrypt", {"KeyId": KEY, "Plaintext": "aGk=", "EncryptionContext": ["a"]}),
        ("Encrypt", {"KeyId": KEY, "Plaintext": "QUFB" * 1366}),
        ("Encrypt", {"KeyId": "x" * 2049, "Plaintext": "aGk="}),
        ("Encrypt", {"KeyId": 7, "Plaintext": "aGk="}),
        ("Decrypt", {"CiphertextBlob": "aGk=", "Recipient": None}),
        ("Decrypt", {"CiphertextBlob": "aGk=", "recipient": {}}),
        ("GenerateDataKey", {"KeyId": KEY, "KeySpec": "AES_512"}),
        ("GenerateDataKey", {"KeyId": KEY, "NumberOfBytes": 1025}),
        ("GenerateDataKey", {"KeyId": KEY, "NumberOfBytes": "32"}),
        ("GenerateDataKey", {"KeyId": KEY, "KeySpec": ["AES_256"]}),
    ],
)
def test_parameters_that_do_not_fit(operation: str, parameters: dict[str, object]) -> None:
    assert refused(operation, json.dumps(parameters).encode()) == "ValidationException"


def test_base64_is_strict() -> None:
    for text in ("a", "aGk", "aGk=\\n", "!!!!"):
        body = f'{{"CiphertextBlob": "{text}"}}'.encode()
        assert refused("Decrypt", body) == "SerializationException"


def test_operation_names() -> None:
    assert operation_name("TrentService.Decrypt") == "Decrypt"
    for target in (None, "", "Decrypt", "TrentService.", "TrentService.decrypt", "S3.Decrypt"):
        with pytest.raises(KmsError) as caught:
            operation_name(target)
        assert caught.value.kind == "UnknownOperationException"


def test_answers() -> None:
    assert json.loads(encode_answer({"Plaintext": b"hi", "KeyId": "k"}))["Plaintext"] == "aGk="
    with pytest.raises(TypeError):
        encode_answer({"key": object()})
