from __future__ import annotations

import json
from typing import TYPE_CHECKING

import boto3
import numpy as np
import pytest
from moto import mock_aws

from casemate.client import objects
from casemate.client.kms import KmsDataKeys
from casemate.client.objects import read_object, seal_tensors, write_object
from casemate.errors import CasemateError, Code, PolicyError
from casemate.kms_context import object_context
from casemate.kms_policy import attested_key_policy
from casemate.sealed_data import SealedData
from tests.support import evidence as made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casemate.kms_policy import Purpose

ARN = "arn:aws:kms:eu-central-1:111122223333:key/01234567-89ab-cdef-0123-456789abcdef"
READER, MODEL = b"r" * 32, b"m" * 48
X = np.array([1.5, -2.0], np.float32)


class OwnersKms:
    """The two operations that sealing needs."""

    def __init__(self, purpose: Purpose = "object", scope: str = "") -> None:
        policy = made.policy()
        self.contexts: list[object] = []
        self.policy = attested_key_policy(
            account_admin="arn:aws:iam::111122223333:user/admin",
            decrypt_principal="arn:aws:iam::111122223333:role/host",
            releases=policy.releases,
            purpose=purpose,
            scope=scope or policy.audience,
            encrypt_principals=["arn:aws:iam::111122223333:role/app"],
        )

    def get_key_policy(self, **_: str) -> dict[str, str]:
        return {"Policy": json.dumps(self.policy)}

    def generate_data_key(self, **asked: str) -> dict[str, str | bytes]:
        self.contexts.append(asked["EncryptionContext"])
        return {"KeyId": asked["KeyId"], "Plaintext": b"k" * 32, "CiphertextBlob": b"b" * 184}


def seal(kms: OwnersKms) -> bytes:
    return seal_tensors(
        {"x": X}, policy=made.policy(), kms_key=ARN, readers=[READER], models=[MODEL], kms=kms
    )


def refusal(*arguments: object, act: Callable[..., object]) -> CasemateError:
    with pytest.raises(CasemateError) as caught:
        act(*arguments)
    return caught.value


def test_it_seals_for_the_readers_under_the_owners_key() -> None:
    kms = OwnersKms()
    sealed = SealedData.parse(seal(kms))
    assert sealed.header.readers == (READER,)
    assert sealed.header.models == (MODEL,)
    assert sealed.header.audience == made.policy().audience
    assert kms.contexts == [object_context(made.policy().audience)]
    assert sealed.open(b"k" * 32)


@pytest.mark.parametrize(("purpose", "scope"), [("data", ""), ("object", "another.example/x")])
def test_a_key_for_another_purpose_or_scope_is_refused(purpose: Purpose, scope: str) -> None:
    kms = OwnersKms(purpose, scope)
    assert refusal(kms, act=seal).code == Code.KMS_POLICY_TOO_WIDE
    assert kms.contexts == []


def test_files(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sealed")
    write_object(path, b"object")
    assert read_object(path) == b"object"
    assert refusal(path, b"again", act=write_object).code == Code.INVALID_ARGUMENT
    assert refusal(str(tmp_path / "no"), act=read_object).code == Code.INVALID_ARGUMENT


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="clinic")
        yield "clinic"


def test_s3(bucket: str) -> None:
    write_object(f"s3://{bucket}/a/b.sealed", b"object")
    assert read_object(f"s3://{bucket}/a/b.sealed") == b"object"
    for location in (f"s3://{bucket}/none", "s3://no-such-bucket/x", "s3://", "s3://x", "s3:///x"):
        refused = refusal(location, act=read_object)
        assert refused.code == Code.INVALID_ARGUMENT
        assert location in refused.detail


def test_what_is_too_large_is_not_taken(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_LARGEST", 5)
    write_object(f"s3://{bucket}/x", b"object")
    assert refusal(f"s3://{bucket}/x", act=read_object).code == Code.TOO_LARGE


def test_a_key_policy_with_two_readings_is_refused() -> None:
    narrow = attested_key_policy(
        account_admin="arn:aws:iam::111122223333:user/admin",
        decrypt_principal="arn:aws:iam::111122223333:role/host",
        releases=[made.RELEASE],
        purpose="data",
        scope=made.AUDIENCE,
        encrypt_principals=["arn:aws:iam::111122223333:role/app"],
    )
    twice = json.dumps(narrow).replace("{", '{"Statement": [], ', 1)
    assert json.loads(twice) == narrow  # a lax reader sees the narrow one

    class Kms:
        def get_key_policy(self, **_: str) -> dict[str, str]:
            return {"Policy": twice}

    arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    with pytest.raises(PolicyError):
        KmsDataKeys(arn, kms=Kms()).generate(made.policy())
