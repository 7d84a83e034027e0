"""A host before a fake enclave, and what tests ask it over a real gRPC channel."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from casemate.v1 import confidential_inference_pb2 as pb
from casemate_host.config import HostConfig
from casemate_host.host import Host
from tests.support import evidence
from tests.support.fake_enclave import FakeEnclave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.nitro_pki import Chain

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
    address: str
    channel: Any  # calls in bytes have no types in grpc's stubs

    def infer(self, payload: bytes, timeout: float = 60) -> bytes:
        answer: bytes = self.channel.unary_unary(SERVICE + "Infer")(payload, timeout=timeout)
        return answer

    def evidence(self, timeout: float = 60, **fields: bytes) -> pb.Evidence:
        call = self.channel.unary_unary(SERVICE + "GetEvidence")
        request = pb.GetEvidenceRequest(**fields).SerializeToString()
        return pb.Evidence.FromString(call(request, timeout=timeout))

    def health(self, name: str = "") -> int:
        request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
        answer = self.channel.unary_unary(HEALTH + "Check")(request, timeout=60)
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
            assert not wait or host.board.wait_serving(60)
            yield Bench(folder, host, address, channel)
    finally:
        host.stop()


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


def eventually(check: Callable[[], bool], timeout_s: float = 180) -> None:
    until = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.02)


def write_credentials(path: Path, key: str) -> None:
    fields = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": "planted-secret-key"}
    path.write_text(json.dumps(fields))
