"""Bytes, budgets, codes and evidence through the host (SPEC 9.5, 9.6)."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from casemate import limits
from casemate.attestation import EvidenceBundle, verify_evidence
from casemate.errors import Code
from casemate.wire import digest
from tests.support import evidence
from tests.support.fake_enclave import FakeEnclave, now
from tests.support.host_bench import (
    SERVICE,
    SERVING,
    Bench,
    reason,
    refused,
)

pytestmark = pytest.mark.integration


def test_bytes_pass_unchanged(bench: Bench) -> None:
    for size in (0, 1, 1024, 600_000, 20_000_000):
        payload = b"\x00\xff" * (size // 2)
        assert bench.infer(payload) == payload


def test_64_calls_at_a_time(bench: Bench, enclave: FakeEnclave) -> None:
    payloads = [b"sleep:0.05 " + bytes([number]) * number * 100 for number in range(64)]
    with ThreadPoolExecutor(64) as pool:
        for _ in range(3):
            assert list(pool.map(bench.infer, payloads)) == payloads
    assert enclave.shared == 1


def test_configuration_and_evidence_come_first(bench: Bench, enclave: FakeEnclave) -> None:
    assert enclave.configuration == evidence.CONFIGURATION.encode()
    assert bench.health() == SERVING


def test_the_deadline_travels_as_the_budget(bench: Bench, enclave: FakeEnclave) -> None:
    bench.infer(b"x", timeout=100)
    assert 50_000 < enclave.budgets[-1] <= 102_000  # gRPC rounds up


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.REPLAYED, grpc.StatusCode.ABORTED),
        (Code.UNKNOWN_KEY, grpc.StatusCode.FAILED_PRECONDITION),
        (Code.OPEN_FAILED, grpc.StatusCode.INVALID_ARGUMENT),
        (Code.KEY_RELEASE_DENIED, grpc.StatusCode.PERMISSION_DENIED),
        (Code.MODEL_FAILED, grpc.StatusCode.INTERNAL),
    ],
)
def test_the_enclaves_refusals_keep_their_code(
    bench: Bench, code: Code, status: grpc.StatusCode
) -> None:
    assert refused(lambda: bench.infer(b"refuse:" + code.encode())) == (status, code)


def test_stapled_evidence_is_held_and_verifies(bench: Bench, enclave: FakeEnclave) -> None:
    first, second = bench.evidence(), bench.evidence()
    assert first == second
    bundle = EvidenceBundle.parse(first.SerializeToString())
    policy = enclave.policy(evidence="stapled")
    assert verify_evidence(bundle, policy, nonce=None, now=now()).release == "0.1.0"


def test_fresh_evidence_carries_the_nonce(bench: Bench, enclave: FakeEnclave) -> None:
    for nonce in (b"n" * 16, b"m" * 64):
        bundle = EvidenceBundle.parse(bench.evidence(nonce=nonce).SerializeToString())
        verify_evidence(bundle, enclave.policy(), nonce=nonce, now=now())


@pytest.mark.parametrize("size", [0, 1, 15, 65, 500])
def test_nonces_of_other_lengths_are_refused(bench: Bench, size: int) -> None:
    outcome = refused(lambda: bench.evidence(nonce=bytes(size)))
    assert outcome == (grpc.StatusCode.INVALID_ARGUMENT, Code.MALFORMED)


@pytest.mark.parametrize("request_bytes", [b"\xff", b"\x0a\x10short", b"\x0a" * 2000])
def test_what_is_no_evidence_request_is_refused(bench: Bench, request_bytes: bytes) -> None:
    call = bench.channel.unary_unary(SERVICE + "GetEvidence")
    assert reason(lambda: call(request_bytes, timeout=60)) in {Code.MALFORMED, Code.TOO_LARGE}


def test_evidence_by_instance(bench: Bench, enclave: FakeEnclave) -> None:
    present = digest(enclave.instance_config())
    for ask in (bench.evidence, functools.partial(bench.evidence, nonce=b"n" * 16)):
        ask(instance_config_digest=present)
        outcome = refused(functools.partial(ask, instance_config_digest=bytes(48)))
        assert outcome == (grpc.StatusCode.NOT_FOUND, Code.UNKNOWN_INSTANCE)
        assert refused(functools.partial(ask, instance_config_digest=b"short"))[1] == Code.MALFORMED


def test_fresh_evidence_is_rate_limited_and_inference_goes_on(bench: Bench) -> None:
    for _ in range(limits.EVIDENCE_BURST):
        bench.evidence(nonce=b"n" * 16)
    outcome = refused(lambda: [bench.evidence(nonce=b"n" * 16) for _ in range(10)])
    assert outcome == (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.OVERLOADED)
    assert bench.infer(b"x") == b"x"
    bench.evidence()
