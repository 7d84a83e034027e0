"""AttestedKms against a TLS server that plays KMS (SPEC 10.1, 10.2)."""

from __future__ import annotations

import base64
import pickle
import re
import threading
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from casemate import limits
from casemate.attestation.structures import kms_user_data
from casemate.errors import Code, EvidenceError, KeyReleaseError
from casemate_kms import recipient
from casemate_kms.credentials import Credentials
from tests.support.attacker import eventually
from tests.support.kms_bench import AUTHORITY, SECRETS, Bench
from tests.support.kms_endpoint import (
    ARN,
    DATA_KEY,
    DOCUMENT,
    HOST,
    REGION,
    b64,
    granted,
    held,
)


def test_the_request_is_that_of_the_specification(bench: Bench) -> None:
    assert bench.decrypt() == DATA_KEY
    (seen,) = bench.kms.seen
    document = b64(seen.document)
    assert seen.body == {
        "KeyId": ARN,
        "CiphertextBlob": b64(b"wrapped"),
        "EncryptionContext": {
            "casemate:v": "1",
            "casemate:purpose": "data",
            "casemate:scope": "clinic.example",
        },
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        "Recipient": {
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
            "AttestationDocument": document,
        },
    }
    assert bench.attester.asked == [(kms_user_data(), None)]
    key = load_der_public_key(seen.document.removeprefix(DOCUMENT)[8:])
    assert isinstance(key, RSAPublicKey)
    assert key.key_size == 2048
    assert key.public_numbers().e == 65537


def test_each_call_has_a_fresh_document_and_one_connection_serves_them(bench: Bench) -> None:
    for _ in range(3):
        bench.decrypt()
    assert len({seen.document for seen in bench.kms.seen}) == 3
    assert len({seen.peer for seen in bench.kms.seen}) == 1
    assert bench.egress.names == [f"{HOST}:443"]


def test_the_recipient_key_is_renewed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.decrypt()
    bench.decrypt()
    monkeypatch.setattr(limits, "KMS_RECIPIENT_KEY_S", 0.0)
    bench.decrypt()
    keys = [seen.document.removeprefix(DOCUMENT)[8:] for seen in bench.kms.seen]
    assert keys[0] == keys[1] != keys[2]


def test_threads_share_one_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    genuine = recipient._generate

    def counted(now: float) -> recipient.RecipientKey:
        made.append(now)
        return genuine(now)

    monkeypatch.setattr(recipient, "_generate", counted)
    keys = recipient.RecipientKeys()
    threads = [threading.Thread(target=keys.current) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


MALFORMED = [
    "",
    ARN.upper(),
    ARN + "\n",
    ARN.replace(REGION, "eu-central-1.evil"),
    ARN.replace(REGION, "us-east-1"),
    ARN.replace("arn:aws:", "arn:aws-cn:"),
    ARN.replace("key/", "alias/"),
    f"arn:aws:kms:{REGION}:111122223333:key/mrk-0123456789abcdef0123456789abcdef",
    ARN.rpartition("/")[2],
    ARN.replace("111122223333", "11112222333٣"),
]


@pytest.mark.parametrize("arn", MALFORMED)
def test_a_key_from_elsewhere_is_refused_before_anything_is_dialled(bench: Bench, arn: str) -> None:
    assert bench.failing(arn=arn).code is Code.MALFORMED
    assert bench.egress.names == []
    assert bench.attester.asked == []


@pytest.mark.parametrize("blob", [b"", bytes(limits.CIPHERTEXT_BLOB_MAX + 1)])
def test_a_wrapped_key_of_impossible_length_is_refused(bench: Bench, blob: bytes) -> None:
    with pytest.raises(KeyReleaseError) as caught:
        bench.decrypt(blob=blob)
    assert caught.value.code is Code.MALFORMED
    assert bench.egress.names == []


def test_many_threads_at_once(bench: Bench) -> None:
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(bench.decrypt())) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [DATA_KEY] * 24


def test_a_flood_waits_for_its_turn_and_no_longer_than_its_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KMS_CONCURRENT", 1)
    bench.trusting(AUTHORITY.der)
    go = threading.Event()
    bench.kms.answers = [held(go), granted()]
    first = threading.Thread(target=bench.decrypt)
    first.start()
    assert eventually(lambda: bool(bench.kms.seen))
    assert "in flight" in bench.failing(0.2).detail
    go.set()
    first.join()
    assert bench.decrypt() == DATA_KEY


def test_credentials_that_are_absent_or_expired_are_never_used(bench: Bench) -> None:
    client = bench.trusting(AUTHORITY.der, credentials=False)
    assert "not handed in" in bench.failing().detail
    now = time.time_ns() // 1_000_000
    client.set_credentials(*SECRETS, now - 1)
    error = bench.failing()
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert "expired" in error.detail
    assert bench.egress.names == []
    client.set_credentials(*SECRETS, now + 60_000)
    assert bench.decrypt() == DATA_KEY


def test_renewed_credentials_sign_the_next_request(bench: Bench) -> None:
    bench.decrypt()
    bench.client.set_credentials("AKIDSECOND", "another", None, None)
    bench.decrypt()
    first, second = (seen.headers for seen in bench.kms.seen)
    assert "AKIDSENTINEL" in first["Authorization"]
    assert first["X-Amz-Security-Token"] == "token-sentinel"
    assert "AKIDSECOND" in second["Authorization"]
    assert "X-Amz-Security-Token" not in second


@pytest.mark.parametrize(
    "values",
    [
        ("", "s", None),
        ("a", "", None),
        ("a", "s", ""),
        ("a", "s", "token\r\nX-Injected: 1"),
        ("a", "s\n", None),
        ("a b", "s", None),
        ("ä", "s", None),
        ("a", "s" * (limits.CREDENTIAL_MAX + 1), None),
    ],
)
def test_credentials_that_fit_no_header_are_refused_without_being_quoted(
    bench: Bench, values: tuple[str, str, str | None]
) -> None:
    with pytest.raises(KeyReleaseError) as caught:
        bench.client.set_credentials(*values, None)
    assert caught.value.code is Code.MALFORMED
    assert "Injected" not in str(caught.value)


def test_what_the_attester_raises_reaches_the_caller(bench: Bench) -> None:
    def fails(**_fields: object) -> bytes:
        raise EvidenceError(Code.UNAVAILABLE, "no device")

    bench.attester.attest = fails  # type: ignore[method-assign]
    with pytest.raises(EvidenceError):
        bench.decrypt()


def test_secrets_are_neither_shown_nor_pickled(bench: Bench) -> None:
    bench.decrypt()
    credentials = Credentials(*SECRETS, None)
    key = recipient.RecipientKeys().current()
    holders: list[Any] = [bench.client, credentials, key]
    for holder in holders:
        assert not any(secret in repr(holder) for secret in SECRETS)
        assert not re.search(r"\d{20}", repr(holder))
        with pytest.raises(TypeError):
            pickle.dumps(holder)
    assert base64.b64encode(key.public_der).decode() not in repr(key)
    assert credentials != Credentials(*SECRETS, None)
