from __future__ import annotations

import secrets
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.attestation import EvidenceBundle, InstanceConfig, KeyConfig
from casemate.client import Client, KmsDataKeys
from casemate.envelope.hpke import KemKey
from casemate.envelope.messages import Trailer
from casemate.errors import CasemateError, Code, EnvelopeError, EvidenceError, RequestError
from tests.support import evidence as made
from tests.support.aio import LoopedClient
from tests.support.nitro_pki import NOW
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

X = np.array([1.5, -2.0], np.float32)


@pytest.fixture(params=[Client, LoopedClient], ids=["threads", "asyncio"], autouse=True)
def both_kinds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here tries the blocking client, then the asynchronous one."""
    monkeypatch.setitem(globals(), "Client", request.param)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("casemate.client.sessions._now", lambda: NOW)
    with Service() as running:
        yield running


def connect(
    service: Service, caller_key: Ed25519PrivateKey | None = None, **changes: object
) -> Client:
    return Client(service.target, made.policy(**changes), caller_key=caller_key)


def refusal(act: Callable[[], object]) -> CasemateError:
    with pytest.raises(CasemateError) as caught:
        act()
    return caught.value


def test_it_verifies_once_and_infers_many_times(service: Service) -> None:
    with connect(service) as c:
        for _ in range(3):
            assert np.array_equal(c.infer("wdbc", {"x": X}).outputs["x"], X * 2)
    assert service.evidence_calls == 1


def test_the_answer_names_the_model_that_was_pinned(service: Service) -> None:
    with connect(service) as c:
        result = c.infer("wdbc", {"x": X})
    assert (result.model, result.version, result.digest) == ("wdbc", 2, made.MODEL_DIGEST)


def test_the_caller_is_authenticated(service: Service) -> None:
    key = Ed25519PrivateKey.generate()
    with connect(service, caller_key=key) as c:
        c.infer("wdbc", {"x": X})
    assert service.callers == [key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)]


def test_threads_share_one_session(service: Service) -> None:
    results: list[bool] = []
    with connect(service) as c:

        def work(number: int) -> None:
            x = np.full(3, number, np.float32)
            results.append(bool(np.array_equal(c.infer("wdbc", {"x": x}).outputs["x"], x * 2)))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 8
    assert service.evidence_calls == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"roots": frozenset([secrets.token_bytes(32)])}, Code.EVIDENCE_ROOT),
        ({"audience": "another"}, Code.EVIDENCE_AUDIENCE),
        ({"releases": (replace(made.RELEASE, pcr0=b"\x99" * 48),)}, Code.EVIDENCE_MEASUREMENTS),
    ],
)
def test_nothing_is_sealed_to_an_enclave_that_fails(
    service: Service, changes: dict[str, Any], code: Code
) -> None:
    with connect(service, **changes) as c:
        error = refusal(lambda: c.infer("wdbc", {"x": X}))
    assert isinstance(error, EvidenceError)
    assert error.code is code
    assert service.requests == []


def test_a_substituted_key_is_refused(service: Service) -> None:
    mine = KeyConfig(KemKey.generate().public_bytes, NOW - 1, NOW + made.HOUR).encode()
    service.on_evidence = lambda bundle: replace(bundle, key_configs=(mine,))
    with connect(service) as c:
        assert refusal(lambda: c.infer("wdbc", {"x": X})).code is Code.EVIDENCE_BINDING
    assert service.requests == []


def test_stale_evidence_from_another_request_is_refused(service: Service) -> None:
    service.on_evidence = lambda _: service.bundle(secrets.token_bytes(32))
    with connect(service) as c:
        assert refusal(lambda: c.infer("wdbc", {"x": X})).code is Code.EVIDENCE_NONCE


def test_stapled_evidence_needs_no_nonce(service: Service) -> None:
    with connect(service, evidence="stapled") as c:
        assert np.array_equal(c.infer("wdbc", {"x": X}).outputs["x"], X * 2)


def test_garbage_in_place_of_evidence_is_refused(service: Service) -> None:
    garbage = EvidenceBundle("nitro-enclave", b"\xff" * 100, b"", (b"",), b"", b"")
    service.on_evidence = lambda _: garbage
    with connect(service) as c:
        assert refusal(c.verify).code is Code.EVIDENCE_COSE


def test_an_unknown_model_is_refused_before_anything_is_sent(service: Service) -> None:
    with connect(service) as c:
        assert refusal(lambda: c.infer("other", {"x": X})).code is Code.UNKNOWN_MODEL
    assert service.requests == []
    assert service.evidence_calls == 2  # it looked once more


def test_the_answer_of_another_instance_is_refused(service: Service) -> None:
    with connect(service) as c:
        c.verify()
        c.infer("wdbc", {"x": X})
        service.instance = InstanceConfig(
            b"\x08" * 16, NOW - made.HOUR, "process", made.RECEIPT_KEY
        )
        error = refusal(lambda: c.infer("wdbc", {"x": X}))
    assert isinstance(error, EnvelopeError)
    assert error.code is Code.ANSWER_INSTANCE_UNKNOWN


def test_an_older_answer_is_refused(service: Service) -> None:
    with connect(service) as c:
        c.infer("wdbc", {"x": X})
        old = service.answer(service.requests[0])
        service.on_request = lambda _: old
        assert refusal(lambda: c.infer("wdbc", {"x": X})).code is Code.ANSWER_OPEN_FAILED


def test_another_model_than_pinned_is_refused(service: Service) -> None:
    service.trailer = Trailer(Code.OK, "", "wdbc", 2, b"\xbb" * 48)
    with connect(service) as c:
        assert refusal(lambda: c.infer("wdbc", {"x": X})).code is Code.DIGEST_MISMATCH


def test_a_sealed_refusal_reaches_the_caller(service: Service) -> None:
    service.trailer = Trailer(Code.CALLER_REFUSED, "not listed", "wdbc", 2, made.MODEL_DIGEST)
    with connect(service) as c:
        error = refusal(lambda: c.infer("wdbc", {"x": X}))
    assert isinstance(error, RequestError)
    assert (error.code, error.detail) == (Code.CALLER_REFUSED, "not listed")


def lose_once(service: Service) -> None:
    def gone(_: bytes) -> bytes:
        service.on_request = service.answer
        raise RequestError(Code.UNKNOWN_KEY, "no such instance")

    service.on_request = gone


def test_a_lost_session_is_not_sent_again_by_itself(service: Service) -> None:
    lose_once(service)
    with connect(service) as c:
        assert refusal(lambda: c.infer("wdbc", {"x": X})).code is Code.UNKNOWN_KEY
        assert len(service.requests) == 1
        c.infer("wdbc", {"x": X})
    assert service.evidence_calls == 2


def test_a_repeatable_call_is_resealed_once_to_new_evidence(service: Service) -> None:
    lose_once(service)
    with connect(service) as c:
        result = c.infer("wdbc", {"x": X}, repeatable=True)
    assert np.array_equal(result.outputs["x"], X * 2)
    assert service.evidence_calls == 2
    assert service.requests[0] != service.requests[1]


def test_it_reseals_once_and_no_more(service: Service) -> None:
    def gone(_: bytes) -> bytes:
        raise RequestError(Code.STALE_SESSION, "says the host")

    service.on_request = gone
    with connect(service) as c:
        error = refusal(lambda: c.infer("wdbc", {"x": X}, repeatable=True))
    assert error.code is Code.STALE_SESSION
    assert len(service.requests) == 2


def test_a_session_ends_when_its_evidence_is_too_old(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(service, maximum_age_seconds=300) as c:
        c.infer("wdbc", {"x": X})
        later = time.monotonic() + 299
        monkeypatch.setattr("casemate.client.sessions.time.monotonic", lambda: later)
        c.infer("wdbc", {"x": X}, timeout_s=1000)
    assert service.evidence_calls == 2


def test_a_dead_host_is_a_clear_error() -> None:
    with Client("127.0.0.1:1", made.policy()) as c:
        error = refusal(lambda: c.verify(timeout_s=60))
    assert error.code is Code.HOST_UNREACHABLE
    assert "127.0.0.1:1" in error.detail


def test_a_silent_host_meets_the_clients_own_deadline(service: Service) -> None:
    release = threading.Event()

    def silent(_: bytes) -> bytes:
        release.wait(60)
        raise RequestError(Code.INTERNAL, "late")

    service.on_request = silent
    with connect(service) as c:
        error = refusal(lambda: c.infer("wdbc", {"x": X}, timeout_s=0.5))
    release.set()
    assert error.code is Code.DEADLINE_EXCEEDED


def test_an_unknown_reason_is_no_crash(service: Service) -> None:
    def strange(_: bytes) -> bytes:
        error = RequestError(Code.INTERNAL, "x")
        error.code = "NEVER_HEARD_OF"  # type: ignore[assignment]
        raise error

    service.on_request = strange
    with connect(service) as c:
        assert refusal(lambda: c.infer("wdbc", {"x": X})).code is Code.HOST_UNREACHABLE


def test_bad_answers_are_refused(service: Service) -> None:
    with connect(service) as c:
        for garbage in (b"", b"\xff" * 40, b"\x0a\x01x\x12\x01y"):
            service.on_request = lambda _, garbage=garbage: garbage  # type: ignore[misc]
            assert isinstance(refusal(lambda: c.infer("wdbc", {"x": X})), CasemateError)


@pytest.mark.parametrize(
    "claimed",
    [Code.OK, Code.INVALID_INPUT, Code.CALLER_REFUSED, Code.EVIDENCE_ROOT, Code.POLICY_INVALID],
)
def test_the_host_cannot_speak_for_the_enclave_or_the_verifier(
    service: Service, claimed: Code
) -> None:
    def forge(_: bytes) -> bytes:
        raise RequestError(claimed, "says the host")

    service.on_request = forge
    with connect(service) as c:
        assert refusal(lambda: c.infer("wdbc", {"x": X})).code is Code.HOST_UNREACHABLE


def test_what_the_host_says_cannot_steer_a_terminal(service: Service) -> None:
    def steer(_: bytes) -> bytes:
        raise RequestError(Code.OVERLOADED, "a\x1b[2Jb\r\nc\x07")

    service.on_request = steer
    with connect(service) as c:
        error = refusal(lambda: c.infer("wdbc", {"x": X}))
    assert str(error).isprintable()
    assert "[2Jb" in error.detail


def test_a_session_does_not_outlive_its_evidence_while_the_machine_sleeps(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(service, maximum_age_seconds=300) as c:
        c.infer("wdbc", {"x": X})
        monkeypatch.setattr("casemate.client.sessions._now", lambda: NOW + 299_000)
        c.infer("wdbc", {"x": X})
    assert service.evidence_calls == 2


def test_a_refused_session_from_stapled_evidence_is_renewed_with_a_nonce(service: Service) -> None:
    nonces: list[bytes | None] = []
    make = service.bundle

    def noted(nonce: bytes | None) -> EvidenceBundle:
        nonces.append(nonce)
        return make(nonce)

    service.bundle = noted  # type: ignore[method-assign]

    def stale(_: bytes) -> bytes:
        service.on_request = service.answer
        raise RequestError(Code.STALE_SESSION, "before boot")

    service.on_request = stale
    with connect(service, evidence="stapled") as c:
        c.infer("wdbc", {"x": X}, repeatable=True)
    assert nonces[0] is None
    assert nonces[1] is not None


def test_a_call_does_not_wait_for_anothers_verification_beyond_its_deadline(
    service: Service,
) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(bundle: EvidenceBundle) -> EvidenceBundle:
        entered.set()
        release.wait(60)
        return bundle

    service.on_evidence = slow
    with connect(service) as c:
        other = threading.Thread(target=lambda: c.infer("wdbc", {"x": X}, timeout_s=90))
        other.start()
        entered.wait(60)
        error = refusal(lambda: c.infer("wdbc", {"x": X}, timeout_s=0.2))
        release.set()
        other.join()
    assert error.code is Code.DEADLINE_EXCEEDED


def test_answers_do_not_print_themselves(service: Service) -> None:
    with connect(service) as c:
        assert "3.0" not in repr(c.infer("wdbc", {"x": X}))


def test_a_multi_region_key_is_not_used_for_data() -> None:
    arn = "arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"
    assert refusal(lambda: KmsDataKeys(arn, kms=object())).code is Code.MALFORMED


@pytest.mark.parametrize(
    "timeout",
    [float("nan"), float("inf"), -1, -0.001, None, "5", b"5", 10**400, [1.0], 1j],
    ids=repr,
)
def test_a_timeout_that_is_none_is_an_argument_that_is_refused(
    service: Service,
    timeout: Any,  # noqa: ANN401 - whatever a person gives
) -> None:
    with connect(service) as c:
        for act in (
            lambda: c.infer("wdbc", {"x": X}, timeout_s=timeout),
            lambda: c.verify(timeout_s=timeout),
            lambda: c.stream("wdbc", timeout_s=timeout),
        ):
            error = refusal(act)
            assert isinstance(error, RequestError)
            assert error.code is Code.INVALID_ARGUMENT
        assert np.array_equal(c.infer("wdbc", {"x": X}, timeout_s=1e308).outputs["x"], X * 2)
