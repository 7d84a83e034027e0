"""The whole service over real processes: good requests, bad requests, and the next good one."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import onnxruntime
import pytest

from casemate.client.transport import HostConnection
from casemate.errors import CasemateError, Code
from casemate_devkit.local import MODEL
from tests.support.attacker import freeze
from tests.support.deployment import DATA, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
ROWS = DATA.features[:4]


@pytest.fixture
def client(deployment: LocalDeployment) -> Iterator[Client]:
    with deployment.client() as connected:
        yield connected


def code_of(act: Callable[[], object]) -> Code:
    with pytest.raises(CasemateError) as caught:
        act()
    return caught.value.code


def works(client: Client) -> bool:
    result = client.infer(MODEL, {"features": ROWS})
    plain = onnxruntime.InferenceSession(DATA.onnx, providers=["CPUExecutionProvider"])
    label, probabilities = plain.run(["label", "probabilities"], {"features": ROWS})
    return bool(
        result.outputs["label"].tobytes() == label.tobytes()
        and result.outputs["probabilities"].tobytes() == probabilities.tobytes()
    )


def test_sealed_answers_are_plain_onnxruntimes(client: Client) -> None:
    assert works(client)


def test_the_same_with_keys_from_the_clinics_kms(deployment: LocalDeployment) -> None:
    with deployment.client(kms=True) as connected:
        assert works(connected)


def test_only_the_wanted_outputs_are_returned(client: Client) -> None:
    result = client.infer(MODEL, {"features": ROWS}, outputs=["label"])
    assert list(result.outputs) == ["label"]


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"features": ROWS.astype(np.float64)}, "FP32"),
        ({"features": ROWS[:, :29]}, "features"),
        ({"features": ROWS[0]}, "features"),
        ({"features": ROWS, "more": ROWS}, "more"),
        ({"other": ROWS}, "other"),
    ],
    ids=["datatype", "columns", "rank", "unknown input", "wrong name"],
)
def test_wrong_tensors_are_named_and_refused(
    client: Client, inputs: dict[str, np.ndarray], named: str
) -> None:
    with pytest.raises(CasemateError) as caught:
        client.infer(MODEL, inputs)
    assert caught.value.code in (Code.INVALID_INPUT, Code.INVALID_REQUEST)
    assert named in caught.value.detail
    assert works(client)


def test_no_input_at_all_is_refused_before_it_is_sealed(client: Client) -> None:
    assert code_of(lambda: client.infer(MODEL, {})) is Code.INVALID_ARGUMENT


def test_an_unknown_output_is_refused(client: Client) -> None:
    assert code_of(lambda: client.infer(MODEL, {"features": ROWS}, outputs=["no"])) in (
        Code.INVALID_INPUT,
        Code.INVALID_REQUEST,
    )
    assert works(client)


def test_an_unknown_model_or_version_is_refused(client: Client) -> None:
    assert code_of(lambda: client.infer("no", {"features": ROWS})) is Code.UNKNOWN_MODEL
    wanted = {"features": ROWS}
    assert code_of(lambda: client.infer(MODEL, wanted, version=9)) is Code.UNKNOWN_MODEL
    assert works(client)


@pytest.mark.parametrize(
    ("header", "ciphertext", "code"),
    [
        (b"", b"", Code.MALFORMED),
        (b"\x01" * 50, b"x" * 50, Code.MALFORMED),
        (b"\x02" + b"\x01" * 1400, b"x" * 50, Code.UNSUPPORTED_VERSION),
        (b"\x01" * 100_000, b"", Code.MALFORMED),
    ],
    ids=["empty", "short", "version", "long header"],
)
def test_malformed_requests_are_refused(
    deployment: LocalDeployment, client: Client, header: bytes, ciphertext: bytes, code: Code
) -> None:
    with HostConnection(deployment.target) as raw:
        assert code_of(lambda: raw.infer(header, ciphertext, 10)) is code
    assert works(client)


def test_bytes_that_are_no_message_are_refused(deployment: LocalDeployment, client: Client) -> None:
    with grpc.insecure_channel(deployment.target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/casemate.v1.ConfidentialInference/Infer"
        )
        for garbage in (b"", b"\xff" * 1000, b"\x12\x01a\x0a\x01b", b"\x0a\x00\x12\x00\x1a\x00"):
            with pytest.raises(grpc.RpcError) as caught:
                call(garbage, timeout=60)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert works(client)


def test_a_request_above_the_limit_is_refused(client: Client) -> None:
    huge = np.zeros((80_000, 30), np.float32)  # 9.6 MB; the configuration allows 8 MiB
    assert code_of(lambda: client.infer(MODEL, {"features": huge})) is Code.TOO_LARGE
    assert works(client)


def test_health_says_serving(deployment: LocalDeployment) -> None:
    assert deployment.serving()


def eventually(holds: Callable[[], bool], timeout_s: float = 60) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_kms_down_is_a_clear_error_and_the_service_recovers(deployment: LocalDeployment) -> None:
    pid = deployment.kms.pid
    with deployment.client(kms=True) as connected, deployment.client() as local:
        parts = connected._parts.get()
        # It has its key; the enclave has not unwrapped it.
        parts.driver.run(parts.core.live_session(time.monotonic() + 60))
        freeze(pid)
        try:
            wanted = {"features": ROWS}
            code = code_of(lambda: connected.infer(MODEL, wanted, timeout_s=60))
            assert code is Code.KEY_RELEASE_UNAVAILABLE
            assert works(local)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert works(connected)


@pytest.mark.slow
def test_a_crashed_enclave_is_replaced_and_clients_go_on(short_path: Path, tree: Path) -> None:
    with running(short_path, tree) as world, world.client() as client:
        assert works(client)
        assert world.enclave is not None
        world.enclave.stop()
        assert code_of(lambda: client.infer(MODEL, {"features": ROWS})) is Code.UNAVAILABLE
        assert eventually(lambda: not world.serving())
        world.start_enclave()
        world.wait_until_serving()
        assert works(client)  # the session to the old instance was given up
