"""The whole host over a real gRPC channel, before an enclave that answers, stalls and dies."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from casemate import limits
from casemate.attestation import EvidenceBundle, verify_evidence
from casemate.errors import Code
from casemate.v1 import confidential_inference_pb2 as pb
from casemate.wire import digest
from casemate_host.config import HostConfig
from casemate_host.front import MESSAGE_MAX
from casemate_host.host import Host
from tests.support import evidence
from tests.support.fake_enclave import FakeEnclave, new_chain, now, seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration

SERVICE = "/casemate.v1.ConfidentialInference/"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture(scope="module")
def chain() -> Chain:
    return new_chain()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEALTH_PERIOD_S", 0.2)


@pytest.fixture
def enclave(tmp_path: Path, chain: Chain) -> Iterator[FakeEnclave]:
    with running(tmp_path, chain) as started:
        yield started


@contextlib.contextmanager
def running(
    folder: Path,
    chain: Chain,
    number: int = 1,
    *,
    configuration: bytes = b"",
    pcr0: bytes = evidence.IMAGE[0],
) -> Iterator[FakeEnclave]:
    path = folder / "enclave.sock"
    started = FakeEnclave(path, chain, number, configuration=configuration, pcr0=pcr0).start()
    try:
        yield started
    finally:
        started.stop()


@dataclass
class Bench:
    """A running host and a channel to it."""

    folder: Path
    host: Host
    channel: grpc.Channel

    def infer(self, payload: bytes, timeout: float = 10) -> bytes:
        answer: bytes = self.channel.unary_unary(SERVICE + "Infer")(payload, timeout=timeout)
        return answer

    def evidence(self, timeout: float = 10, **fields: bytes) -> pb.Evidence:
        call = self.channel.unary_unary(SERVICE + "GetEvidence")
        request = pb.GetEvidenceRequest(**fields).SerializeToString()
        return pb.Evidence.FromString(call(request, timeout=timeout))

    def health(self, name: str = "") -> int:
        request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
        answer = self.channel.unary_unary(HEALTH + "Check")(request, timeout=5)
        return int(health_pb2.HealthCheckResponse.FromString(answer).status)


def write_config(folder: Path, chain: Chain, front: str = "", enclave: str = "") -> Path:
    (folder / "configuration.cbor").write_bytes(evidence.CONFIGURATION.encode())
    policy = folder / "policy.toml"
    if not policy.exists():
        policy.write_text(evidence.policy(roots=chain.roots).to_toml())
    path = folder / "host.toml"
    path.write_text(f"""
version = 1
[front]
{front}
[enclave]
address = "unix:{folder}/enclave.sock"
configuration = "configuration.cbor"
trust_policy = "policy.toml"
{enclave}
""")
    return path


@contextlib.contextmanager
def serving(
    folder: Path, chain: Chain, front: str = "", enclave: str = "", *, wait: bool = True
) -> Iterator[Bench]:
    host = Host(HostConfig.load(write_config(folder, chain, front, enclave)))
    address = host.start()
    try:
        with grpc.insecure_channel(address, OPTIONS) as channel:
            assert not wait or host.board.wait_serving(10)
            yield Bench(folder, host, channel)
    finally:
        host.stop()


@pytest.fixture
def bench(tmp_path: Path, chain: Chain, enclave: FakeEnclave) -> Iterator[Bench]:
    with serving(tmp_path, chain) as made:
        yield made


def refused(ask: Callable[[], object]) -> tuple[grpc.StatusCode, str | None]:
    """The status and the reason of its ErrorInfo, if it has one."""
    with pytest.raises(grpc.RpcError) as raised:
        ask()
    return raised.value.code(), reason_in(raised.value)


def reason_in(error: grpc.RpcError) -> str | None:
    status = rpc_status.from_call(error)
    if status is None:
        return None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "casemate"
    return str(info.reason)


def reason(ask: Callable[[], object]) -> str | None:
    """The reason for which the call was refused, None if it was not."""
    try:
        ask()
    except grpc.RpcError as error:
        return reason_in(error)
    return None


def eventually(check: Callable[[], bool], timeout_s: float = 10) -> None:
    until = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.02)


# Serving


def test_bytes_pass_unchanged(bench: Bench) -> None:
    for size in (0, 1, 1024, 600_000, 20_000_000):
        payload = b"\x00\xff" * (size // 2)
        assert bench.infer(payload) == payload


def test_64_calls_at_a_time(bench: Bench, enclave: FakeEnclave) -> None:
    payloads = [b"sleep:0.05 " + bytes([number]) * number * 100 for number in range(64)]
    with ThreadPoolExecutor(64) as pool:
        for _ in range(3):
            assert list(pool.map(bench.infer, payloads)) == payloads
    assert enclave.accepted < 60


def test_configuration_and_evidence_come_first(bench: Bench, enclave: FakeEnclave) -> None:
    assert enclave.configuration == evidence.CONFIGURATION.encode()
    assert bench.health() == SERVING


def test_the_deadline_travels_as_the_budget(bench: Bench, enclave: FakeEnclave) -> None:
    bench.infer(b"x", timeout=5)
    assert 3000 < enclave.budgets[-1] <= 5000


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


# Evidence


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
    assert reason(lambda: call(request_bytes, timeout=5)) in {Code.MALFORMED, Code.TOO_LARGE}


def test_evidence_by_instance(bench: Bench, enclave: FakeEnclave) -> None:
    present = digest(enclave.instance_config())
    for nonce in ({}, {"nonce": b"n" * 16}):
        ask = functools.partial(bench.evidence, **nonce)
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


# Loss and overload


@pytest.mark.parametrize("verb", [b"die", b"cut"])
def test_an_enclave_that_dies_within_a_request(
    bench: Bench, enclave: FakeEnclave, verb: bytes
) -> None:
    outcome = refused(lambda: bench.infer(verb))
    assert outcome == (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE)
    assert enclave.requests.count(verb) == 1
    eventually(lambda: bench.host.board.standing.serving)
    assert bench.infer(b"x") == b"x"


def test_a_cancelled_call_frees_its_worker(
    tmp_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(tmp_path, chain, "unary = 1") as bench:
        for _ in range(5):
            before = len(enclave.requests)
            call = bench.channel.unary_unary(SERVICE + "Infer").future(b"silent", timeout=30)
            eventually(lambda seen=before: len(enclave.requests) > seen)  # type: ignore[misc]
            call.cancel()
        eventually(lambda: _answers(bench))


def _answers(bench: Bench) -> bool:
    with contextlib.suppress(grpc.RpcError):
        return bench.infer(b"x") == b"x"
    return False


def test_a_deadline_frees_its_worker(tmp_path: Path, chain: Chain, enclave: FakeEnclave) -> None:
    with serving(tmp_path, chain, "unary = 1") as bench:
        code, _ = refused(lambda: bench.infer(b"silent", timeout=0.2))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: _answers(bench))


def test_overload_is_refused_with_its_code(
    tmp_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(tmp_path, chain, "unary = 2") as bench, ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(bench.infer, b"sleep:5") for _ in range(2)]
        eventually(lambda: len(enclave.requests) == 2)
        outcome = refused(lambda: bench.infer(b"x"))
        assert outcome == (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.OVERLOADED)
        assert bench.health() == SERVING
        bench.evidence()
        enclave.released.set()
        assert [future.result() for future in busy] == [b"sleep:5"] * 2


def test_oversized_messages_are_refused(bench: Bench, enclave: FakeEnclave) -> None:
    outcome = refused(lambda: bench.infer(bytes(MESSAGE_MAX + 1)))
    assert outcome == (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.TOO_LARGE)
    code, _ = refused(lambda: bench.infer(bytes(MESSAGE_MAX + 10 * limits.MIB)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert enclave.requests == []
    assert bench.infer(b"x") == b"x"


def test_callers_who_send_nothing_cannot_keep_the_workers(
    tmp_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(tmp_path, chain, "unary = 2\nreceive_seconds = 1") as bench:
        ended = threading.Event()
        infer = bench.channel.stream_unary(SERVICE + "Infer")

        def nothing() -> Iterator[bytes]:
            ended.wait(20)
            yield from ()

        calls = [infer.future(nothing(), timeout=20) for _ in range(2)]
        eventually(lambda: reason(lambda: bench.infer(b"x")) == Code.OVERLOADED, 5)
        for call in calls:
            assert refused(call.result)[0] is grpc.StatusCode.CANCELLED
        assert bench.infer(b"x") == b"x"
        ended.set()


def test_a_call_without_a_message_is_malformed(bench: Bench) -> None:
    infer = bench.channel.stream_unary(SERVICE + "Infer")
    assert refused(lambda: infer(iter([]), timeout=5))[1] == Code.MALFORMED


def test_held_open_streams_cannot_keep_the_workers(bench: Bench) -> None:
    ended = threading.Event()

    def silence() -> Iterator[bytes]:
        ended.wait(20)
        yield from ()

    reflect = bench.channel.stream_stream(REFLECTION)
    open_ones = [reflect(silence(), timeout=20) for _ in range(3 * limits.STREAMS_MAX)]
    watch = bench.channel.unary_stream(HEALTH + "Watch")
    eventually(lambda: reason(lambda: next(watch(b"", timeout=5))) == Code.OVERLOADED)
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(bench.infer, [b"sleep:0.02"] * 64)) == [b"sleep:0.02"] * 64
    assert bench.health() == SERVING
    ended.set()
    for call in open_ones:
        call.cancel()
    eventually(lambda: reason(lambda: next(watch(b"", timeout=5))) is None)


# The life of an enclave


def test_a_restarted_enclave_is_brought_back(tmp_path: Path, chain: Chain) -> None:
    model = seal(tmp_path / "wdbc.casemate")
    with contextlib.ExitStack() as stack:
        with running(tmp_path, chain) as first:
            lines = f'models = ["{model.name}"]'
            bench = stack.enter_context(serving(tmp_path, chain, enclave=lines))
            assert first.models
            instance = bench.evidence().instance_config
            assert bench.infer(b"x") == b"x"
        outcome = refused(lambda: bench.infer(b"x"))
        assert outcome == (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE)
        eventually(lambda: bench.health() == NOT_SERVING)
        assert refused(bench.evidence)[1] == Code.UNAVAILABLE
        assert bench.health("model/wdbc") == NOT_SERVING
        second = stack.enter_context(running(tmp_path, chain, number=2))
        eventually(lambda: bench.health() == SERVING)
        assert second.configuration == evidence.CONFIGURATION.encode()
        assert second.models == first.models
        assert bench.health("model/wdbc") == SERVING
        assert bench.evidence().instance_config not in {instance, b""}
        assert bench.infer(b"x") == b"x"


def test_an_enclave_that_was_swapped_under_the_host(tmp_path: Path, chain: Chain) -> None:
    """It comes back between two looks, already configured by somebody: checked like any other."""
    credentials = tmp_path / "credentials.json"
    write_credentials(credentials, "one")
    lines = 'credentials = "credentials.json"\nevidence_seconds = 1'
    configuration = evidence.CONFIGURATION.encode()
    with contextlib.ExitStack() as stack:
        with running(tmp_path, chain) as first:
            bench = stack.enter_context(serving(tmp_path, chain, enclave=lines))
            eventually(lambda: len(first.credentials) == 1)
        second = stack.enter_context(
            running(tmp_path, chain, number=2, configuration=configuration)
        )
        eventually(lambda: len(second.credentials) == 1)
        eventually(lambda: bench.health() == SERVING)


def test_an_enclave_of_another_measurement_is_never_served(tmp_path: Path, chain: Chain) -> None:
    write_credentials(tmp_path / "credentials.json", "one")
    seal(tmp_path / "wdbc.casemate")
    lines = 'credentials = "credentials.json"\nmodels = ["wdbc.casemate"]'
    with (
        running(tmp_path, chain, pcr0=b"\x66" * 48) as other,
        serving(tmp_path, chain, enclave=lines, wait=False) as bench,
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
    tmp_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    seal(tmp_path / "wdbc.casemate")
    for _ in range(2):
        with serving(tmp_path, chain, enclave='models = ["wdbc.casemate"]') as bench:
            assert bench.health("model/wdbc") == SERVING
    assert enclave.loads == 1


def test_one_bad_model_does_not_stop_the_others(
    tmp_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    (tmp_path / "broken.casemate").write_bytes(b"CASEMDL1" + bytes(100))
    seal(tmp_path / "wdbc.casemate", size=9_000_000)
    seal(tmp_path / "denied.casemate", name="denied", size=9_000_000)
    enclave.load_failures.append(Code.MODEL_PUBLISHER_UNKNOWN)
    lines = 'models = ["denied.casemate", "missing.casemate", "broken.casemate", "wdbc.casemate"]'
    with serving(tmp_path, chain, enclave=lines) as bench:
        assert bench.health("model/wdbc") == SERVING
        assert bench.health("model/denied") == NOT_SERVING
        assert bench.infer(b"x") == b"x"
        held = EvidenceBundle.parse(bench.evidence().SerializeToString())
        policy = enclave.policy(evidence="stapled")
        assert [e.name for e in verify_evidence(held, policy, nonce=None, now=now()).log] == [
            "wdbc"
        ]
        assert enclave.loads == 2


def test_key_release_is_tried_again(tmp_path: Path, chain: Chain, enclave: FakeEnclave) -> None:
    seal(tmp_path / "wdbc.casemate")
    enclave.load_failures += [Code.KEY_RELEASE_UNAVAILABLE, Code.KEY_RELEASE_DENIED]
    with serving(tmp_path, chain, enclave='models = ["wdbc.casemate"]') as bench:
        assert bench.health() == SERVING
        assert bench.health("model/wdbc") == NOT_SERVING
        eventually(lambda: bench.health("model/wdbc") == SERVING)
        assert enclave.loads == 3
        assert bench.evidence().measurement_log != b"\x80"  # re-made after the load


def test_changed_credentials_are_sent_and_free_waiting_models(
    tmp_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    path = tmp_path / "credentials.json"
    write_credentials(path, "one")
    seal(tmp_path / "wdbc.casemate")
    enclave.load_failures.append(Code.KEY_RELEASE_INVALID)  # not tried again by itself
    lines = 'credentials = "credentials.json"\nmodels = ["wdbc.casemate"]'
    with serving(tmp_path, chain, enclave=lines) as bench:
        eventually(lambda: len(enclave.credentials) == 1)
        path.write_text("{half written")
        write_credentials(path, "two")
        eventually(lambda: bench.health("model/wdbc") == SERVING)
        assert [item["access_key_id"] for item in enclave.credentials] == ["one", "two"]


def write_credentials(path: Path, key: str) -> None:
    fields = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": "planted-secret-key"}
    path.write_text(json.dumps(fields))


def test_a_passing_failure_of_evidence_does_not_stop_serving(
    tmp_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(tmp_path, chain, enclave="evidence_seconds = 1") as bench:
        enclave.evidence_failures.append(Code.OVERLOADED)
        eventually(lambda: not enclave.evidence_failures)
        assert bench.health() == SERVING
        enclave.evidence_failures += [Code.CLOCK_UNAVAILABLE] * 4
        eventually(lambda: bench.health() == NOT_SERVING)
        eventually(lambda: bench.health() == SERVING)


def test_an_unreachable_enclave_is_awaited(tmp_path: Path, chain: Chain) -> None:
    with serving(tmp_path, chain, wait=False) as bench:
        assert bench.health() == NOT_SERVING
        assert refused(lambda: bench.infer(b"x"))[1] == Code.UNAVAILABLE
        with running(tmp_path, chain):
            assert bench.host.board.wait_serving(10)


# Health, reflection, start and stop


def test_watches_follow_the_standing(tmp_path: Path, chain: Chain) -> None:
    with contextlib.ExitStack() as stack:
        bench = stack.enter_context(serving(tmp_path, chain, wait=False))
        watch = bench.channel.unary_stream(HEALTH + "Watch")(b"", timeout=20)
        read = health_pb2.HealthCheckResponse.FromString
        assert read(next(watch)).status == NOT_SERVING
        with running(tmp_path, chain):
            assert read(next(watch)).status == SERVING
        assert read(next(watch)).status == NOT_SERVING


def test_unknown_names_hold_nothing(bench: Bench) -> None:
    request = health_pb2.HealthCheckRequest(service="x").SerializeToString()
    for ask in (
        lambda: bench.health("x"),
        lambda: next(bench.channel.unary_stream(HEALTH + "Watch")(request, timeout=5)),
    ):
        assert refused(ask)[0] is grpc.StatusCode.NOT_FOUND


def test_reflection_names_the_services(bench: Bench) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = bench.channel.stream_stream(REFLECTION)
    answer = next(call(iter([request.SerializeToString()]), timeout=5))
    listed = reflection_pb2.ServerReflectionResponse.FromString(answer).list_services_response
    assert {service.name for service in listed.service} == {
        "casemate.v1.ConfidentialInference",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_stopping_drains_what_is_under_way(
    tmp_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    before = set(threading.enumerate())
    with ThreadPoolExecutor(1) as pool:
        with serving(tmp_path, chain) as bench:
            watch = bench.channel.unary_stream(HEALTH + "Watch")(b"", timeout=20)
            next(watch)
            slow = pool.submit(bench.infer, b"sleep:0.5")
            eventually(lambda: len(enclave.requests) == 1)
            bench.host.stop()
            assert slow.result() == b"sleep:0.5"
        left = {t.name for t in set(threading.enumerate()) - before if t.name.startswith("call")}
        assert not left
        assert not {t.name for t in threading.enumerate()} & {"supervisor", "patience", "report"}


def test_a_call_that_does_not_end_is_cut(
    tmp_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(tmp_path, chain, "drain_seconds = 1") as bench:
        call = bench.channel.unary_unary(SERVICE + "Infer").future(b"silent", timeout=30)
        eventually(lambda: len(enclave.requests) == 1)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert call.exception() is not None


@dataclass
class Process:
    """A host as its own process."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=15)
        return self.process.returncode, errors


@pytest.fixture
def start_process() -> Iterator[Callable[[Path], Process]]:
    started: list[subprocess.Popen[str]] = []

    def start(config: Path) -> Process:
        command = [sys.executable, "-m", "casemate_host", "--config", str(config)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        assert process.stdout is not None
        return Process(process, json.loads(process.stdout.readline()))

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_process_says_where_it_listens_and_ends_in_order(
    tmp_path: Path, chain: Chain, enclave: FakeEnclave, start_process: Callable[[Path], Process]
) -> None:
    write_credentials(tmp_path / "credentials.json", "one")
    config = write_config(tmp_path, chain, enclave='credentials = "credentials.json"')
    running_host = start_process(config)
    assert running_host.ready["event"] == "ready"
    assert running_host.ready["tls"] is False
    with grpc.insecure_channel(running_host.ready["address"], OPTIONS) as channel:
        infer = channel.unary_unary(SERVICE + "Infer")
        eventually(lambda: bool(enclave.credentials))
        eventually(lambda: reason(lambda: infer(b"warm", timeout=5)) is None)
        assert infer(b"planted-payload", timeout=5) == b"planted-payload"
        assert reason(lambda: infer(b"refuse:REPLAYED planted-payload", timeout=5))
    code, log = running_host.end()
    assert code == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events[-1] == "stopped"
    assert {"listening", "enclave_configured", "serving", "traffic"} <= set(events)
    assert "planted" not in log


def test_a_bad_configuration_ends_the_process_with_areason(tmp_path: Path) -> None:
    (tmp_path / "host.toml").write_text("version = 1\n")
    command = [sys.executable, "-m", "casemate_host", "--config", str(tmp_path / "host.toml")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    (event,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert event["code"] == Code.INVALID_ARGUMENT
    assert "front is missing" in event["detail"]
