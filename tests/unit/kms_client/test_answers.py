"""What KMS may answer, and what becomes of it (SPEC 10.3; A41, A42)."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from casemate import limits
from casemate.errors import Code
from tests.support.kms_endpoint import (
    ARN,
    DATA_KEY,
    OTHER_ARN,
    Answer,
    Seen,
    b64,
    granted,
    raw,
    refused,
    sealed_to,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.kms_bench import Bench


def test_denied(bench: Bench) -> None:
    bench.kms.answers = [refused("AccessDeniedException")]
    assert bench.failing().code is Code.KEY_RELEASE_DENIED
    assert len(bench.kms.seen) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ThrottlingException", 400),
        ("KMSInternalException", 500),
        ("DependencyTimeoutException", 503),
        ("Anything", 503),
        ("Anything", 429),
    ],
)
def test_throttled_then_granted_with_a_fresh_document(bench: Bench, code: str, status: int) -> None:
    bench.kms.answers = [refused(code, status), refused(code, status), granted()]
    assert bench.decrypt() == DATA_KEY
    assert len({seen.document for seen in bench.kms.seen}) == 3


def test_attempts_are_bounded(bench: Bench) -> None:
    bench.kms.answers = [refused("ThrottlingException")]
    error = bench.failing()
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert len(bench.kms.seen) == limits.KMS_ATTEMPTS


@pytest.mark.parametrize(
    "code",
    ["InvalidCiphertextException", "IncorrectKeyException", "NotFoundException", "no name!", ""],
)
def test_any_other_refusal_is_invalid(bench: Bench, code: str) -> None:
    bench.kms.answers = [refused(code)]
    assert bench.failing().code is Code.KEY_RELEASE_INVALID
    assert len(bench.kms.seen) == 1


def test_expired_credentials_are_unavailable_and_not_retried(bench: Bench) -> None:
    bench.kms.answers = [refused("ExpiredTokenException")]
    assert bench.failing().code is Code.KEY_RELEASE_UNAVAILABLE
    assert len(bench.kms.seen) == 1


def too_long(request: Seen) -> Answer:
    status, body = granted()(request)
    return status, body.ljust(limits.KMS_ANSWER_MAX + 1)


INVALID_ANSWERS: dict[str, Callable[[Seen], Answer]] = {
    "wrong KeyId": granted(KeyId=OTHER_ARN),
    "KeyId without ARN": granted(KeyId=ARN.rpartition("/")[2]),
    "no KeyId": granted(KeyId=None),
    "wrong algorithm": granted(EncryptionAlgorithm="RSAES_OAEP_SHA_256"),
    "no algorithm": granted(EncryptionAlgorithm=None),
    "no envelope": granted(CiphertextForRecipient=None),
    "empty envelope": granted(CiphertextForRecipient=""),
    "garbage envelope": granted(CiphertextForRecipient=b64(os.urandom(400))),
    "plaintext beside": granted(Plaintext=b64(DATA_KEY)),
    "plaintext instead": granted(CiphertextForRecipient=None, Plaintext=b64(DATA_KEY)),
    "plaintext of a zero byte": granted(Plaintext=b64(b"\0")),
    "plaintext that decodes to nothing": granted(Plaintext="!!!!"),
    "plaintext of a blank": granted(Plaintext=" "),
    "plaintext false": granted(Plaintext=False),
    "plaintext zero": granted(Plaintext=0),
    "plaintext list": granted(Plaintext=[]),
    "31 bytes": granted(bytes(31)),
    "33 bytes": granted(bytes(33)),
    "no bytes": granted(b""),
    "not JSON": raw(b"<html>"),
    "empty body": raw(b""),
    "JSON list": raw(b"[]"),
    "JSON text": raw(b'"Plaintext"'),
    "deep JSON": raw(b"[" * 60_000),
    "not UTF-8": raw(b'{"KeyId": "\xff"}'),
    "too long": too_long,
    "redirect": raw(b"{}", 307),
    "error that is no JSON": raw(b"\xff\xfe", 400),
}


@pytest.mark.parametrize("answer", INVALID_ANSWERS.values(), ids=INVALID_ANSWERS)
def test_an_answer_that_is_not_exactly_right_is_invalid(
    bench: Bench, answer: Callable[[Seen], Answer]
) -> None:
    bench.kms.answers = [answer]
    assert bench.failing().code is Code.KEY_RELEASE_INVALID
    assert len(bench.kms.seen) == 1


@pytest.mark.parametrize("plaintext", [None, ""])
def test_an_absent_or_empty_plaintext_is_accepted(bench: Bench, plaintext: str | None) -> None:
    def answer(request: Seen) -> Answer:
        status, body = granted()(request)
        return status, json.dumps(json.loads(body) | {"Plaintext": plaintext}).encode()

    bench.kms.answers = [answer]
    assert bench.decrypt() == DATA_KEY


def test_an_envelope_to_an_earlier_document_of_the_same_boot_opens_no_other_key(
    bench: Bench,
) -> None:
    """The recipient key lives an hour; what ties the key to its use is the commitment (A47)."""
    bench.decrypt()
    first = bench.kms.seen[0].document
    envelope = b64(sealed_to(first, bytes(32)))
    bench.kms.answers = [granted(CiphertextForRecipient=envelope)]
    assert bench.decrypt() == bytes(32)
