"""Attested GenerateDataKey and GenerateRandom (SPEC 10.5; THREATS H9, A42, A49)."""

from __future__ import annotations

import json
import pickle
import time
from typing import TYPE_CHECKING, Any

import pytest

from casemate import limits
from casemate.attestation.structures import kms_user_data
from casemate.errors import Code, KeyReleaseError
from casemate.kms_context import data_context
from tests.support.kms_bench import AUTHORITY, Bench
from tests.support.kms_endpoint import (
    ARN,
    DATA_KEY,
    OTHER_ARN,
    REGION,
    Authority,
    b64,
    refused,
    sealed_to,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_kms.answers import GeneratedKey
    from tests.support.kms_endpoint import Answer, Seen

BLOB = b"wrapped by KMS"
CONTEXT = data_context("clinic.example")
RANDOM = bytes(range(48))


def answered(content: bytes, **changes: object) -> Callable[[Seen], Answer]:
    def answer(request: Seen) -> Answer:
        members: dict[str, Any] = {
            "CiphertextForRecipient": b64(sealed_to(request.document, content))
        }
        members = {k: v for k, v in (members | changes).items() if v is not None}
        return 200, json.dumps(members).encode()

    return answer


def made(**changes: object) -> Callable[[Seen], Answer]:
    return answered(DATA_KEY, **{"KeyId": ARN, "CiphertextBlob": b64(BLOB), **changes})


def soon() -> float:
    return time.monotonic() + 60


def data_key(bench: Bench, arn: str = ARN) -> GeneratedKey:
    return bench.client.generate_data_key(key_arn=arn, context=CONTEXT, deadline=soon())


def random(bench: Bench, count: int = 48, region: str = REGION) -> bytes:
    return bench.client.generate_random(count, region=region, deadline=soon())


def code_of(act: Callable[..., object], *arguments: object) -> Code:
    with pytest.raises(KeyReleaseError) as caught:
        act(*arguments)
    return caught.value.code


def test_a_data_key_is_asked_for_and_opened(bench: Bench) -> None:
    bench.kms.answers = [made()]
    key = data_key(bench)
    assert (key.key, key.ciphertext_blob) == (DATA_KEY, BLOB)
    (seen,) = bench.kms.seen
    recipient = seen.body.pop("Recipient")
    assert recipient["KeyEncryptionAlgorithm"] == "RSAES_OAEP_SHA_256"
    assert seen.body == {"KeyId": ARN, "NumberOfBytes": 32, "EncryptionContext": CONTEXT}
    assert seen.headers["X-Amz-Target"] == "TrentService.GenerateDataKey"
    assert bench.attester.asked == [(kms_user_data(), None)]


def test_random_bytes_are_asked_for_and_opened(bench: Bench) -> None:
    bench.kms.answers = [answered(RANDOM)]
    assert random(bench) == RANDOM
    (seen,) = bench.kms.seen
    assert seen.body.pop("Recipient")
    assert seen.body == {"NumberOfBytes": 48}
    assert seen.headers["X-Amz-Target"] == "TrentService.GenerateRandom"


@pytest.mark.parametrize(
    "changes",
    [
        {"KeyId": OTHER_ARN},
        {"KeyId": None},
        {"Plaintext": b64(DATA_KEY)},
        {"CiphertextForRecipient": None},
        {"CiphertextForRecipient": b64(b"x" * 300)},
        {"CiphertextBlob": None},
        {"CiphertextBlob": ""},
        {"CiphertextBlob": b64(bytes(limits.CIPHERTEXT_BLOB_MAX + 1))},
    ],
)
def test_h9_an_answer_that_is_not_quite_a_data_key_is_refused(
    bench: Bench, changes: dict[str, object]
) -> None:
    bench.kms.answers = [made(**changes)]
    assert code_of(data_key, bench) is Code.KEY_RELEASE_INVALID


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
def test_h9_a_data_key_of_another_length_is_refused(bench: Bench, content: bytes) -> None:
    envelope = answered(content, KeyId=ARN, CiphertextBlob=b64(BLOB))
    bench.kms.answers = [envelope]
    assert code_of(data_key, bench) is Code.KEY_RELEASE_INVALID


@pytest.mark.parametrize(
    "answer",
    [answered(RANDOM[:-1]), answered(RANDOM + b"x"), answered(RANDOM, Plaintext=b64(RANDOM))],
)
def test_h9_random_bytes_that_anyone_could_read_or_cut_are_refused(
    bench: Bench, answer: Callable[[Seen], Answer]
) -> None:
    bench.kms.answers = [answer]
    assert code_of(random, bench) is Code.KEY_RELEASE_INVALID


def test_a49_tls_that_ends_elsewhere_gives_no_secret(bench: Bench) -> None:
    """No commitment would notice a host that chose these: only the measured TLS roots do."""
    bench.kms.answers = [made()]
    bench.trusting(Authority("The host's own CA").der)
    assert code_of(data_key, bench) is Code.KEY_RELEASE_UNAVAILABLE
    assert code_of(random, bench) is Code.KEY_RELEASE_UNAVAILABLE
    assert bench.kms.seen == []
    bench.trusting(AUTHORITY.der)
    assert data_key(bench).key == DATA_KEY


def test_bounds_are_checked_before_anything_is_dialled(bench: Bench) -> None:
    assert code_of(data_key, bench, ARN.replace("key/", "alias/")) is Code.MALFORMED
    for count in (0, -1, limits.KMS_RANDOM_MAX + 1):
        assert code_of(random, bench, count) is Code.MALFORMED
    assert code_of(random, bench, 1, "us-east-1") is Code.MALFORMED
    assert bench.egress.names == []


def test_a_denial_is_a_denial_and_a_busy_kms_is_asked_again(bench: Bench) -> None:
    bench.kms.answers = [refused("AccessDeniedException")]
    assert code_of(data_key, bench) is Code.KEY_RELEASE_DENIED
    bench.kms.answers = [refused("ThrottlingException"), answered(RANDOM)]
    assert random(bench) == RANDOM


def test_a_generated_key_is_neither_shown_nor_pickled(bench: Bench) -> None:
    bench.kms.answers = [made()]
    key = data_key(bench)
    assert repr(key) == "<GeneratedKey: redacted>"
    with pytest.raises(TypeError):
        pickle.dumps(key)
