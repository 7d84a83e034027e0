"""Health, reflection, start and stop."""

from __future__ import annotations

import contextlib
import datetime as dt
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
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from casemate.errors import CasemateError, Code
from casemate_host.config import HostConfig
from casemate_host.host import Host
from tests.support.host_bench import (
    HEALTH,
    NOT_SERVING,
    OPTIONS,
    REFLECTION,
    SERVICE,
    SERVING,
    Bench,
    eventually,
    reason,
    refused,
    running,
    serving,
    write_config,
    write_credentials,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration


def test_watches_follow_the_standing(short_path: Path, chain: Chain) -> None:
    with contextlib.ExitStack() as stack:
        bench = stack.enter_context(serving(short_path, chain, wait=False))
        watch = bench.channel.unary_stream(HEALTH + "Watch")(b"", timeout=100)
        read = health_pb2.HealthCheckResponse.FromString
        assert read(next(watch)).status == NOT_SERVING
        with running(short_path, chain):
            assert read(next(watch)).status == SERVING
        assert read(next(watch)).status == NOT_SERVING


def test_unknown_names_hold_nothing(bench: Bench) -> None:
    request = health_pb2.HealthCheckRequest(service="x").SerializeToString()
    for ask in (
        lambda: bench.health("x"),
        lambda: next(bench.channel.unary_stream(HEALTH + "Watch")(request, timeout=60)),
    ):
        assert refused(ask)[0] is grpc.StatusCode.NOT_FOUND


def test_reflection_names_the_services(bench: Bench) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = bench.channel.stream_stream(REFLECTION)
    answer = next(call(iter([request.SerializeToString()]), timeout=60))
    listed = reflection_pb2.ServerReflectionResponse.FromString(answer).list_services_response
    assert {service.name for service in listed.service} == {
        "casemate.v1.ConfidentialInference",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_tls_to_the_front(short_path: Path, chain: Chain, enclave: FakeEnclave) -> None:
    certificate = self_signed(short_path)
    front = 'tls_certificate = "front.pem"\ntls_key = "front.key"'
    with serving(short_path, chain, front) as bench:
        assert reason_or_status(bench) is grpc.StatusCode.UNAVAILABLE  # no plaintext
        trusted = grpc.ssl_channel_credentials(certificate)
        options = [*OPTIONS, ("grpc.ssl_target_name_override", "front.example")]
        with grpc.secure_channel(bench.address, trusted, options) as channel:
            infer: Any = channel.unary_unary(SERVICE + "Infer")
            assert infer(b"x", timeout=60) == b"x"


def reason_or_status(bench: Bench) -> grpc.StatusCode:
    return refused(lambda: bench.infer(b"x", timeout=60))[0]


def self_signed(folder: Path) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "front.example")])
    moment = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - dt.timedelta(hours=1))
        .not_valid_after(moment + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("front.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(Encoding.PEM)
    (folder / "front.pem").write_bytes(pem)
    (folder / "front.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return pem


def test_a_port_in_use_is_refused(short_path: Path, chain: Chain, bench: Bench) -> None:
    """Two hosts that shared a port would answer by turns."""
    config = HostConfig.load(write_config(short_path, chain, f'listen = "{bench.address}"'))
    host = Host(config)
    with pytest.raises(CasemateError) as raised:
        host.start()
    assert raised.value.code is Code.UNAVAILABLE


def test_stopping_drains_what_is_under_way(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    before = set(threading.enumerate())
    with ThreadPoolExecutor(1) as pool:
        with serving(short_path, chain) as bench:
            watch = bench.channel.unary_stream(HEALTH + "Watch")(b"", timeout=100)
            next(watch)
            slow = pool.submit(bench.infer, b"sleep:1.2")
            eventually(lambda: len(enclave.requests) == 1)
            bench.host.stop()
            assert slow.result() == b"sleep:1.2"

        def left() -> set[str]:
            names = {thread.name for thread in set(threading.enumerate()) - before}
            own = {"supervisor", "patience", "report"}
            return {name for name in names if name.startswith("call") or name in own}

        eventually(lambda: not left())


def test_a_call_that_does_not_end_is_cut(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    with serving(short_path, chain, "drain_seconds = 1") as bench:
        call = bench.channel.unary_unary(SERVICE + "Infer").future(b"silent", timeout=110)
        eventually(lambda: len(enclave.requests) == 1)
        started = time.monotonic()
    assert time.monotonic() - started < 25  # the enclave says nothing for 30
    assert call.exception() is not None


@dataclass
class Process:
    """A host as its own process."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=60)
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
    short_path: Path, chain: Chain, enclave: FakeEnclave, start_process: Callable[[Path], Process]
) -> None:
    write_credentials(short_path / "credentials.json", "one")
    config = write_config(short_path, chain, enclave='credentials = "credentials.json"')
    running_host = start_process(config)
    assert running_host.ready["event"] == "ready"
    assert running_host.ready["tls"] is False
    with grpc.insecure_channel(running_host.ready["address"], OPTIONS) as channel:
        infer: Any = channel.unary_unary(SERVICE + "Infer")
        eventually(lambda: bool(enclave.credentials))
        eventually(lambda: reason(lambda: infer(b"warm", timeout=60)) is None)
        assert infer(b"planted-payload", timeout=60) == b"planted-payload"
        assert reason(lambda: infer(b"refuse:REPLAYED planted-payload", timeout=60))
    code, log = running_host.end()
    assert code == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events[-1] == "stopped"
    assert {"listening", "enclave_configured", "serving", "traffic"} <= set(events)
    assert "planted" not in log


def test_a_bad_configuration_ends_the_process_with_areason(short_path: Path) -> None:
    (short_path / "host.toml").write_text("version = 1\n")
    command = [sys.executable, "-m", "casemate_host", "--config", str(short_path / "host.toml")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    (event,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert event["code"] == Code.INVALID_ARGUMENT
    assert "front is missing" in event["detail"]
