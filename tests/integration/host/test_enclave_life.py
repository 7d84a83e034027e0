"""Enclaves that restart, are swapped or are not what they should be; models; credentials."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import grpc
import pytest

from casemate.attestation import EvidenceBundle, verify_evidence
from casemate.errors import Code
from tests.support import evidence
from tests.support.fake_enclave import FakeEnclave, now, seal
from tests.support.host_bench import (
    NOT_SERVING,
    SERVING,
    eventually,
    refused,
    running,
    serving,
    write_credentials,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration


def test_a_restarted_enclave_is_brought_back(short_path: Path, chain: Chain) -> None:
    model = seal(short_path / "wdbc.casemate")
    with contextlib.ExitStack() as stack:
        with running(short_path, chain) as first:
            lines = f'models = ["{model.name}"]'
            bench = stack.enter_context(serving(short_path, chain, enclave=lines))
            assert first.models
            instance = bench.evidence().instance_config
            assert bench.infer(b"x") == b"x"
        outcome = refused(lambda: bench.infer(b"x"))
        assert outcome == (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE)
        eventually(lambda: bench.health() == NOT_SERVING)
        assert refused(bench.evidence)[1] == Code.UNAVAILABLE
        assert bench.health("model/wdbc") == NOT_SERVING
        second = stack.enter_context(running(short_path, chain, number=2))
        eventually(lambda: bench.health() == SERVING)
        assert second.configuration == evidence.CONFIGURATION.encode()
        assert second.models == first.models
        assert bench.health("model/wdbc") == SERVING
        assert bench.evidence().instance_config not in {instance, b""}
        assert bench.infer(b"x") == b"x"


def test_an_enclave_that_was_swapped_under_the_host(short_path: Path, chain: Chain) -> None:
    """It comes back between two looks, already configured by somebody: checked like any other."""
    credentials = short_path / "credentials.json"
    write_credentials(credentials, "one")
    lines = 'credentials = "credentials.json"\nevidence_seconds = 1'
    configuration = evidence.CONFIGURATION.encode()
    with contextlib.ExitStack() as stack:
        with running(short_path, chain) as first:
            bench = stack.enter_context(serving(short_path, chain, enclave=lines))
            eventually(lambda: len(first.credentials) == 1)
        second = stack.enter_context(
            running(short_path, chain, number=2, configuration=configuration)
        )
        eventually(lambda: len(second.credentials) == 1)
        eventually(lambda: bench.health() == SERVING)


def test_an_enclave_of_another_measurement_is_never_served(short_path: Path, chain: Chain) -> None:
    write_credentials(short_path / "credentials.json", "one")
    seal(short_path / "wdbc.casemate")
    lines = 'credentials = "credentials.json"\nmodels = ["wdbc.casemate"]'
    with (
        running(short_path, chain, pcr0=b"\x66" * 48) as other,
        serving(short_path, chain, enclave=lines, wait=False) as bench,
    ):
        board = bench.host.board
        eventually(lambda: board.standing.code is Code.EVIDENCE_MEASUREMENTS)
        assert bench.health() == NOT_SERVING
        assert refused(lambda: bench.infer(b"x"))[1] == Code.UNAVAILABLE
        assert other.requests == []
        assert other.credentials == []
        assert other.loads == 0
        # Whoever wants to know why may look for themselves.
        assert bench.evidence(nonce=b"n" * 16).attestation_document


def test_a_host_that_comes_back_finds_its_enclave_loaded(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    seal(short_path / "wdbc.casemate")
    for _ in range(2):
        with serving(short_path, chain, enclave='models = ["wdbc.casemate"]') as bench:
            assert bench.health("model/wdbc") == SERVING
    assert enclave.loads == 1


def test_one_bad_model_does_not_stop_the_others(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    (short_path / "broken.casemate").write_bytes(b"CASEMDL2" + bytes(100))
    seal(short_path / "wdbc.casemate", size=9_000_000)
    seal(short_path / "denied.casemate", name="denied", size=9_000_000)
    enclave.load_failures.append(Code.MODEL_PUBLISHER_UNKNOWN)
    lines = 'models = ["denied.casemate", "missing.casemate", "broken.casemate", "wdbc.casemate"]'
    with serving(short_path, chain, enclave=lines) as bench:
        assert bench.health("model/wdbc") == SERVING
        assert bench.health("model/denied") == NOT_SERVING
        assert bench.infer(b"x") == b"x"
        held = EvidenceBundle.parse(bench.evidence().SerializeToString())
        policy = enclave.policy(evidence="stapled")
        assert [e.name for e in verify_evidence(held, policy, nonce=None, now=now()).log] == [
            "wdbc"
        ]
        assert enclave.loads == 2


def test_key_release_is_tried_again(short_path: Path, chain: Chain, enclave: FakeEnclave) -> None:
    seal(short_path / "wdbc.casemate")
    enclave.load_failures += [Code.KEY_RELEASE_UNAVAILABLE, Code.KEY_RELEASE_DENIED] * 1000
    with serving(short_path, chain, enclave='models = ["wdbc.casemate"]') as bench:
        assert bench.health() == SERVING
        eventually(lambda: enclave.loads >= 2)
        assert bench.health("model/wdbc") == NOT_SERVING
        enclave.load_failures.clear()
        eventually(lambda: bench.health("model/wdbc") == SERVING)
        assert bench.evidence().measurement_log != b"\x80"  # re-made after the load


def test_changed_credentials_are_sent_and_free_waiting_models(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    path = short_path / "credentials.json"
    write_credentials(path, "one")
    seal(short_path / "wdbc.casemate")
    enclave.load_failures.append(Code.KEY_RELEASE_INVALID)  # not tried again by itself
    lines = 'credentials = "credentials.json"\nmodels = ["wdbc.casemate"]'
    with serving(short_path, chain, enclave=lines) as bench:
        eventually(lambda: len(enclave.credentials) == 1)
        path.write_text("{half written")
        write_credentials(path, "two")
        eventually(lambda: bench.health("model/wdbc") == SERVING)
        assert [item["access_key_id"] for item in enclave.credentials] == ["one", "two"]


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.CLOCK_UNAVAILABLE, Code.OVERLOADED])
def test_evidence_that_cannot_be_renewed_for_now_does_not_stop_serving(
    short_path: Path, chain: Chain, enclave: FakeEnclave, code: Code
) -> None:
    """As when the security module does not answer: the enclave does, and what it proved holds."""
    with serving(short_path, chain, enclave="evidence_seconds = 1") as bench:
        enclave.evidence_failures += [code] * 1000
        eventually(lambda: len(enclave.evidence_failures) < 995)  # that many rounds in a row
        held = bench.evidence()
        assert bench.health() == SERVING
        assert bench.infer(b"x") == b"x"
        enclave.evidence_failures.clear()
        eventually(lambda: bench.evidence() != held)


def test_no_credentials_go_to_who_cannot_prove_now_what_it_is(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    path = short_path / "credentials.json"
    write_credentials(path, "one")
    lines = 'credentials = "credentials.json"\nevidence_seconds = 1'
    with serving(short_path, chain, enclave=lines) as bench:
        enclave.evidence_failures += [Code.UNAVAILABLE] * 1000
        eventually(lambda: len(enclave.evidence_failures) < 1000)
        write_credentials(path, "two")
        left = len(enclave.evidence_failures)
        eventually(lambda: len(enclave.evidence_failures) < left - 3)
        assert bench.health() == SERVING
        assert [item["access_key_id"] for item in enclave.credentials] == ["one"]
        enclave.evidence_failures.clear()
        eventually(lambda: len(enclave.credentials) == 2)


def test_evidence_of_a_loaded_model_is_asked_for_until_it_comes(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    seal(short_path / "wdbc.casemate")
    enclave.load_failures.append(Code.KEY_RELEASE_UNAVAILABLE)
    lines = 'models = ["wdbc.casemate"]\nevidence_seconds = 300'
    with serving(short_path, chain, enclave=lines) as bench:
        enclave.evidence_failures += [Code.UNAVAILABLE] * 1000
        eventually(lambda: bench.health("model/wdbc") == SERVING)
        assert bench.evidence().measurement_log == b"\x80"  # of before the load
        enclave.evidence_failures.clear()
        eventually(lambda: bench.evidence().measurement_log != b"\x80")


def test_evidence_that_is_not_renewed_becomes_too_old(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    (short_path / "policy.toml").write_text(enclave.policy(maximum_age_seconds=2).to_toml())
    with serving(short_path, chain, enclave="evidence_seconds = 1") as bench:
        enclave.evidence_failures += [Code.UNAVAILABLE] * 1000
        eventually(lambda: bench.health() == NOT_SERVING)
        assert refused(lambda: bench.infer(b"x"))[1] == Code.UNAVAILABLE
        enclave.evidence_failures.clear()
        eventually(lambda: bench.health() == SERVING)


def test_evidence_that_fails_the_policy_ends_service_at_once(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain, enclave="evidence_seconds = 1") as bench:
        enclave.pcr0 = b"\x66" * 48
        eventually(lambda: bench.host.board.standing.code is Code.EVIDENCE_MEASUREMENTS)
        assert bench.health() == NOT_SERVING


def test_an_unreachable_enclave_is_awaited(short_path: Path, chain: Chain) -> None:
    with serving(short_path, chain, wait=False) as bench:
        assert bench.health() == NOT_SERVING
        assert refused(lambda: bench.infer(b"x"))[1] == Code.UNAVAILABLE
        with running(short_path, chain):
            assert bench.host.board.wait_serving(60)
