"""AttestedKms against a TLS server that plays KMS (SPEC 10.1 to 10.3)."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from casemate import limits
from casemate.attestation.structures import KmsConfiguration, kms_user_data
from casemate.errors import Code, EvidenceError, KeyReleaseError
from casemate_kms import recipient
from casemate_kms.client import AttestedKms
from casemate_kms.credentials import Credentials
from tests.support.kms_bench import AUTHORITY, SECRETS, Bench
from tests.support.kms_endpoint import (
    ARN,
    DATA_KEY,
    DOCUMENT,
    HOST,
    OTHER_ARN,
    REGION,
    Answer,
    Authority,
    FakeAttester,
    Seen,
    b64,
    granted,
    raw,
    refused,
    sealed_to,
    slow,
)

Script = list[Callable[[Seen], Answer]]


def failing(bench: Bench, seconds: float = 10, arn: str = ARN) -> KeyReleaseError:
    with pytest.raises(KeyReleaseError) as caught:
        bench.decrypt(arn, seconds)
    assert not any(secret in str(caught.value) for secret in SECRETS)
    assert "secret-role" not in str(caught.value)
    return caught.value


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


def test_a_connection_that_kms_closed_is_replaced(bench: Bench) -> None:
    bench.kms.keep_alive = False
    bench.decrypt()
    bench.decrypt()
    assert len({seen.peer for seen in bench.kms.seen}) == 2
    assert len(bench.attester.asked) == 2


def test_a_connection_that_kms_closed_unannounced_is_replaced(bench: Bench) -> None:
    bench.kms.idle = 0.05
    bench.decrypt()
    time.sleep(0.3)
    bench.decrypt()
    assert len({seen.peer for seen in bench.kms.seen}) == 2
    assert len(bench.attester.asked) == 2


def test_an_old_idle_connection_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.decrypt()
    monkeypatch.setattr(limits, "KMS_IDLE_S", 0.0)
    bench.decrypt()
    assert len({seen.peer for seen in bench.kms.seen}) == 2


def test_denied(bench: Bench) -> None:
    bench.kms.answers = [refused("AccessDeniedException")]
    assert failing(bench).code is Code.KEY_RELEASE_DENIED
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
    error = failing(bench)
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert len(bench.kms.seen) == limits.KMS_ATTEMPTS


@pytest.mark.parametrize(
    "code",
    ["InvalidCiphertextException", "IncorrectKeyException", "NotFoundException", "no name!", ""],
)
def test_any_other_refusal_is_invalid(bench: Bench, code: str) -> None:
    bench.kms.answers = [refused(code)]
    assert failing(bench).code is Code.KEY_RELEASE_INVALID
    assert len(bench.kms.seen) == 1


def test_expired_credentials_are_unavailable_and_not_retried(bench: Bench) -> None:
    bench.kms.answers = [refused("ExpiredTokenException")]
    assert failing(bench).code is Code.KEY_RELEASE_UNAVAILABLE
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
    assert failing(bench).code is Code.KEY_RELEASE_INVALID
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
    assert failing(bench, arn=arn).code is Code.MALFORMED
    assert bench.egress.names == []
    assert bench.attester.asked == []


@pytest.mark.parametrize("blob", [b"", bytes(limits.CIPHERTEXT_BLOB_MAX + 1)])
def test_a_wrapped_key_of_impossible_length_is_refused(bench: Bench, blob: bytes) -> None:
    with pytest.raises(KeyReleaseError) as caught:
        bench.decrypt(blob=blob)
    assert caught.value.code is Code.MALFORMED
    assert bench.egress.names == []


def test_another_authority_is_not_trusted(bench: Bench) -> None:
    bench.trusting(Authority().der)
    error = failing(bench)
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert "TLS" in error.detail
    assert bench.kms.seen == []
    assert len(bench.egress.names) == 1


def test_another_host_name_is_not_accepted(misnamed: Bench) -> None:
    error = failing(misnamed)
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert "mismatch" in error.detail
    assert misnamed.kms.seen == []


def test_a_root_that_is_no_certificate_is_refused() -> None:
    configuration = KmsConfiguration("aws", (REGION,), (AUTHORITY.der, b"junk"))
    with pytest.raises(KeyReleaseError) as caught:
        AttestedKms(configuration, FakeAttester(), lambda *_: socket.socket())
    assert caught.value.code is Code.MALFORMED


def test_every_configured_root_is_trusted(bench: Bench) -> None:
    bench.trusting(Authority("first").der, AUTHORITY.der)
    assert bench.decrypt() == DATA_KEY


def test_a_destination_off_the_list_is_not_asked_for_again(bench: Bench) -> None:
    bench.egress.ports = {}
    error = failing(bench)
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert "list" in error.detail
    assert len(bench.egress.names) == 1


@pytest.mark.parametrize("verdict", [b"\x02", b"\x03", b""])
def test_an_unreachable_destination_is_asked_for_again(bench: Bench, verdict: bytes) -> None:
    bench.egress.verdict = verdict
    assert failing(bench).code is Code.KEY_RELEASE_UNAVAILABLE
    assert len(bench.egress.names) == limits.KMS_ATTEMPTS


def test_a_dead_proxy(bench: Bench) -> None:
    bench.egress.path += ".gone"
    bench.trusting(AUTHORITY.der)
    start = time.monotonic()
    error = failing(bench)
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert "egress" in error.detail
    assert time.monotonic() - start < 2


def test_a_proxy_that_connects_and_hangs_up(bench: Bench) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        bench.egress.ports = {f"{HOST}:443": closed.getsockname()[1]}
        assert failing(bench).code is Code.KEY_RELEASE_UNAVAILABLE


@pytest.mark.parametrize("trouble", ["slow", "silent", "drip", "dribble"])
def test_the_deadline_holds(bench: Bench, trouble: str) -> None:
    if trouble == "slow":
        bench.kms.answers = [slow(3)]
    elif trouble == "silent":
        bench.egress.swallow = True
    elif trouble == "drip":
        bench.egress.drip = 0.02
    else:
        bench.kms.dribble = 0.02
    start = time.monotonic()
    error = failing(bench, 0.6)
    assert error.code is Code.KEY_RELEASE_UNAVAILABLE
    assert time.monotonic() - start < 1.2


def test_no_time_left(bench: Bench) -> None:
    assert failing(bench, -1).code is Code.KEY_RELEASE_UNAVAILABLE
    assert bench.egress.names == []


def test_garbage_instead_of_tls(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            stream, _ = server.accept()
            with stream:
                stream.recv(4096)
                stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        bench.egress.ports = {f"{HOST}:443": server.getsockname()[1]}
        assert failing(bench).code is Code.KEY_RELEASE_UNAVAILABLE
        thread.join()


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
    bench.kms.answers = [slow(1), granted()]
    first = threading.Thread(target=bench.decrypt)
    first.start()
    while not bench.kms.seen:
        time.sleep(0.01)
    assert "in flight" in failing(bench, 0.1).detail
    first.join()
    assert bench.decrypt() == DATA_KEY


def test_credentials_that_are_absent_or_expired_are_never_used(bench: Bench) -> None:
    client = bench.trusting(AUTHORITY.der, credentials=False)
    assert "not handed in" in failing(bench).detail
    now = time.time_ns() // 1_000_000
    client.set_credentials(*SECRETS, now - 1)
    error = failing(bench)
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
