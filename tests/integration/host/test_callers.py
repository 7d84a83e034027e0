"""Callers of a host: tokens and certificates, and that a flood is its sender's alone (C3, C10)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from casemate import limits
from casemate.client import HostAccess
from casemate.client.transport import HostConnection
from casemate.errors import Code, RequestError
from casemate_host.admission import TokenBucket
from tests.support.front_pki import HOST_NAME, FrontPki
from tests.support.host_bench import OPTIONS, SERVICE, Bench, eventually, reason, refused, serving
from tests.support.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration
CERTIFIED = '[[caller]]\nname = "clinic"\ncertificates = ["clinic.example"]\n'
CLINIC, LAB = "token-of-the-clinic-0001", "token-of-the-lab-00000001"


def known(name: str, token: str, more: str = "") -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[caller]]\nname = "{name}"\ntoken_sha256 = ["{digest}"]\n{more}\n'


def retry_s(error: grpc.RpcError) -> float | None:
    info = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            return float(info.retry_delay.ToTimedelta().total_seconds())
    return None


def infer(bench: Bench, payload: bytes, token: str | None = None, timeout: float = 100) -> bytes:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    call = bench.channel.unary_unary(SERVICE + "Infer")
    answer: bytes = call(payload, timeout=timeout, metadata=metadata)
    return answer


def test_known_callers_are_served_and_others_are_not(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain, enclave=known("clinic", CLINIC)) as bench:
        assert infer(bench, b"x", CLINIC) == b"x"
        wanted = (grpc.StatusCode.UNAUTHENTICATED, Code.UNAUTHENTICATED)
        for token in (None, LAB, CLINIC + "x", ""):
            assert refused(partial(infer, bench, b"y", token)) == wanted
        assert refused(bench.evidence) == wanted
        assert enclave.requests == [b"x"]
        assert bench.health() == 1  # asks nobody who it is


def test_the_clients_sdk_shows_its_token(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain, enclave=known("clinic", CLINIC)) as bench:
        with HostConnection(bench.address, HostAccess(token=CLINIC)) as connection:
            connection.get_evidence(None, 60)
        with HostConnection(bench.address, HostAccess(token=LAB)) as connection:
            with pytest.raises(RequestError) as raised:
                connection.get_evidence(None, 60)
            assert raised.value.code is Code.UNAUTHENTICATED


@contextlib.contextmanager
def mutual(folder: Path, chain: Chain, callers: str) -> Iterator[tuple[Bench, FrontPki]]:
    pki = FrontPki(folder)
    pki.issue(HOST_NAME, "front")
    front = 'tls_certificate = "front.pem"\ntls_key = "front.key"\ntls_client_ca = "ca.pem"'
    with serving(folder, chain, front, callers) as bench:
        yield bench, pki


def over_tls(
    bench: Bench, pki: FrontPki, pair: tuple[bytes, bytes] | None, token: str | None = None
) -> bytes:
    certificate, key = pair or (None, None)
    credentials = grpc.ssl_channel_credentials(pki.root.read_bytes(), key, certificate)
    options = [*OPTIONS, ("grpc.ssl_target_name_override", HOST_NAME)]
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.secure_channel(bench.address, credentials, options) as channel:
        call: Any = channel.unary_unary(SERVICE + "Infer")
        answer: bytes = call(b"x", timeout=60, metadata=metadata)
        return answer


def test_a_certificate_names_the_caller(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    callers = CERTIFIED + "daily_calls = 2\n"
    with mutual(short_path, chain, callers + known("lab", LAB)) as (bench, pki):
        clinic, other = pki.issue("clinic.example"), pki.issue("other.example")
        assert over_tls(bench, pki, clinic) == b"x"
        assert reason(lambda: over_tls(bench, pki, other)) == Code.UNAUTHENTICATED
        assert over_tls(bench, pki, other, LAB) == b"x"  # a token says more than a certificate
        assert reason(lambda: over_tls(bench, pki, clinic, CLINIC)) == Code.UNAUTHENTICATED
        assert over_tls(bench, pki, clinic) == b"x"
        assert reason(lambda: over_tls(bench, pki, clinic)) == Code.QUOTA_EXCEEDED


def test_a_certificate_of_another_authority_or_none_is_no_way_in(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with mutual(short_path, chain, CERTIFIED) as (bench, pki):
        elsewhere = FrontPki(short_path, "elsewhere").issue("clinic.example", "forged")
        for pair in (elsewhere, None):
            outcome = refused(partial(over_tls, bench, pki, pair))
            assert outcome[0] is grpc.StatusCode.UNAVAILABLE
        assert enclave.requests == []


def test_a_renewed_certificate_is_used_without_a_restart(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with mutual(short_path, chain, CERTIFIED) as (bench, old):
        clinic = old.issue("clinic.example")
        assert over_tls(bench, old, clinic) == b"x"
        renewed = FrontPki(short_path, "ca")  # the same files, another authority
        renewed.issue(HOST_NAME, "front")
        for name in ("ca.pem", "front.pem", "front.key"):
            os.utime(short_path / name, ns=(1, time.time_ns()))
        assert over_tls(bench, renewed, renewed.issue("clinic.example")) == b"x"
        assert refused(lambda: over_tls(bench, old, clinic))[0] is grpc.StatusCode.UNAVAILABLE


def test_c3_a_flood_of_one_caller_takes_its_own_places_only(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    callers = known("flood", LAB, "concurrent = 3") + known("clinic", CLINIC)
    with (
        serving(short_path, chain, "unary = 8", callers) as bench,
        ThreadPoolExecutor(64) as pool,
    ):
        held = [pool.submit(infer, bench, b"sleep:60", LAB) for _ in range(60)]
        eventually(lambda: len(enclave.requests) == 3)
        eventually(lambda: sum(future.done() for future in held) == 57)
        for _ in range(20):
            assert infer(bench, b"x", CLINIC) == b"x"
        outcomes = [future.exception() for future in held if future.done()]
        assert all(isinstance(error, grpc.RpcError) for error in outcomes)
        enclave.released.set()
        assert sum(future.exception() is None for future in held) == 3


@pytest.mark.parametrize(("method", "held_at_most"), [("InferStream", 2), ("GetEvidence", 6)])
def test_c3_idle_calls_of_one_caller_take_its_own_places_only(
    short_path: Path, chain: Chain, enclave: FakeEnclave, method: str, held_at_most: int
) -> None:
    """A call that says nothing costs nothing and lasts long: it must not keep others out."""
    callers = known("flood", LAB) + known("clinic", CLINIC)
    over = threading.Event()

    def silent() -> Iterator[bytes]:
        over.wait(100)
        yield from ()

    def stream(questions: Iterator[bytes], token: str) -> Any:  # noqa: ANN401 - a code, if any
        call = bench.channel.stream_stream(SERVICE + method)
        metadata = [("authorization", f"Bearer {token}")]
        return reason(lambda: next(call(questions, timeout=100, metadata=metadata)))

    with (
        serving(short_path, chain, "streams = 4\nreceive_seconds = 600", callers) as bench,
        ThreadPoolExecutor(16) as pool,
    ):
        held = [pool.submit(stream, silent(), LAB) for _ in range(16)]
        eventually(lambda: sum(future.done() for future in held) == 16 - held_at_most)
        assert {future.result() for future in held if future.done()} == {Code.OVERLOADED}
        assert stream(iter([b"x"]), CLINIC) != Code.OVERLOADED
        over.set()


class Clock:
    now = 100.0

    def bucket(self, rate: float, burst: int) -> TokenBucket:
        return TokenBucket(rate, burst, lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of every rate, which stands still."""
    clock = Clock()
    monkeypatch.setattr("casemate_host.callers.TokenBucket", clock.bucket)
    return clock


def test_c3_rates_and_daily_shares_are_each_callers_own(
    short_path: Path, chain: Chain, enclave: FakeEnclave, clock: Clock
) -> None:
    callers = known("slow", LAB, "rate = 1\nburst = 2") + known("clinic", CLINIC, "daily_calls = 3")
    with serving(short_path, chain, enclave=callers) as bench:
        for _ in range(2):
            infer(bench, b"x", LAB)
        with pytest.raises(grpc.RpcError) as raised:
            infer(bench, b"x", LAB)
        hint = retry_s(raised.value)
        assert hint is not None
        assert 0 < hint <= 1
        for _ in range(3):
            infer(bench, b"x", CLINIC)
        outcome = refused(lambda: infer(bench, b"x", CLINIC))
        assert outcome == (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.QUOTA_EXCEEDED)
        clock.now += hint
        infer(bench, b"x", LAB)  # what the hint promised


def test_c3_bytes_of_a_day_are_counted(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    callers = known("clinic", CLINIC, "daily_bytes = 1000")
    with serving(short_path, chain, enclave=callers) as bench:
        infer(bench, bytes(999), CLINIC)
        infer(bench, bytes(1), CLINIC)
        assert reason(lambda: infer(bench, b"x", CLINIC)) == Code.QUOTA_EXCEEDED


def test_c3_a_restart_gives_nobody_its_day_anew(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    quotas = f'[quotas]\nfile = "{short_path}/usage.json"\n'
    callers = quotas + known("clinic", CLINIC, "daily_calls = 3")
    for _ in range(3):
        with serving(short_path, chain, enclave=callers) as bench:
            infer(bench, b"x", CLINIC)
    with serving(short_path, chain, enclave=callers) as bench:
        assert reason(lambda: infer(bench, b"x", CLINIC)) == Code.QUOTA_EXCEEDED


def test_c10_the_unknown_have_one_share_and_the_known_keep_theirs(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    callers = known("clinic", CLINIC) + "[anonymous]\nrate = 5\nburst = 5\n"
    with serving(short_path, chain, enclave=callers) as bench, ThreadPoolExecutor(16) as pool:
        begun = time.monotonic()
        floods = [pool.submit(reason, lambda: infer(bench, b"anonymous")) for _ in range(400)]
        for _ in range(30):
            assert infer(bench, b"known", CLINIC) == b"known"
        outcomes = [future.result() for future in floods]
        most = 5 + 5 * (time.monotonic() - begun)
        assert outcomes.count(None) <= most
        assert set(outcomes) <= {None, Code.OVERLOADED}
        assert enclave.requests.count(b"anonymous") == outcomes.count(None)


@pytest.mark.usefixtures("clock")
def test_c3_fresh_evidence_is_each_callers_own(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    callers = known("clinic", CLINIC) + "[anonymous]\n"
    with serving(short_path, chain, enclave=callers) as bench:
        outcomes = [reason(lambda: bench.evidence(nonce=bytes(32))) for _ in range(40)]
        assert outcomes.count(Code.OVERLOADED) == 40 - limits.EVIDENCE_BURST
        with HostConnection(bench.address, HostAccess(token=CLINIC)) as connection:
            connection.get_evidence(bytes(32), 60)


def test_a_full_house_refuses_at_once_and_says_when_to_come_back(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain, "unary = 4") as bench, ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            infer(bench, b"sleep:0.01")
        busy = [pool.submit(infer, bench, b"sleep:60") for _ in range(4)]
        eventually(lambda: bench.host._front.unary.taken == 4)
        begun = time.monotonic()
        errors = []
        for _ in range(50):
            with pytest.raises(grpc.RpcError) as raised:
                infer(bench, b"x")
            errors.append(raised.value)
        assert time.monotonic() - begun < 60
        assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        hints = [retry_s(error) for error in errors]
        assert all(hint is not None and 0 < hint <= 5 for hint in hints)
        assert not enclave.requests.count(b"x")
        enclave.released.set()
        assert [future.result() for future in busy] == [b"sleep:60"] * 4


@pytest.mark.usefixtures("clock")
def test_each_callers_calls_are_counted_under_its_name(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    callers = known("clinic", CLINIC, "rate = 1\nburst = 2")
    metrics = '[metrics]\nlisten = "127.0.0.1:0"\n'
    with serving(short_path, chain, enclave=callers + metrics) as bench:
        for token in (CLINIC, CLINIC, CLINIC, LAB):
            reason(partial(infer, bench, b"x", token))
        with urllib.request.urlopen(f"http://{bench.host.metrics_address}/metrics") as page:
            text = page.read().decode()
    assert 'casemate_caller_calls_total{caller="clinic",code="OK"} 2.0' in text
    assert 'casemate_caller_calls_total{caller="clinic",code="OVERLOADED"} 1.0' in text
    assert 'casemate_calls_total{code="UNAUTHENTICATED",method="Infer"} 1.0' in text
    assert CLINIC not in text
    assert LAB not in text


def test_a_callers_deadline_reaches_the_enclave(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain) as bench:
        infer(bench, b"x", timeout=100)

        def budget(seconds: float) -> int:
            """What the enclave is given of so many; 0 if none were left."""
            outcome = refused(lambda: infer(bench, b"silent", timeout=seconds))
            assert outcome[0] is grpc.StatusCode.DEADLINE_EXCEEDED
            given = enclave.budgets[1:]
            assert all(0 < each <= seconds * 1020 + 100 for each in given)  # gRPC rounds up
            return len(given)

        assert patiently(budget, bool) == 1
    assert 50_000 < enclave.budgets[0] <= 102_000
