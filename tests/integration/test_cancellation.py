"""A caller that goes away: what runs or waits for it ends inside (THREATS C5, SPEC 9.2.1).

Each test's model has one place and no queue: whoever holds it is all there is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from casemate import limits
from casemate.channel import connect
from casemate.client import AsyncClient, Client, RetryPolicy
from casemate.envelope.sealed_message import encode_sealed
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType, send_frame
from casemate.sealed_model import Serving
from casemate.tensors import TensorSpec, to_request
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.aio import is_framed, until_framed
from tests.support.attacker import eventually, genuine, second_host, start_session
from tests.support.patience import patiently
from tests.support.vendor_models import seal
from tests.support.workers import ticks_of_family

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
VERSION = 31
SECONDS = (0.3, 0.3, 1, 3, 10)  # in which a question that finds no place is refused
ONCE = RetryPolicy(attempts=0)
ONE = {"x": np.ones((), np.float32)}
SCALAR = {"inputs": (TensorSpec("x", "FP32", ()),), "outputs": (TensorSpec("y", "FP32", ()),)}


@pytest.fixture
def endless(deployment: LocalDeployment, tmp_path: Path) -> Iterator[str]:
    """A model that never ends, with one place and no queue."""
    alone = Serving(concurrency=1, queue=0)
    sealed = seal(
        deployment, tmp_path, onnx_bytes.endless(), version=VERSION, serving=alone, **SCALAR
    )
    enclave = genuine(deployment)
    enclave.load(sealed)
    yield f"{MODEL}:{VERSION}"
    enclave.unload(MODEL, VERSION)


class Watcher:
    """Sees whether the model's place is held; it asks for nothing before a question has come."""

    def __init__(self, client: Client, deployment: LocalDeployment, model: str) -> None:
        assert deployment.enclave is not None
        self.client = client
        self.enclave = genuine(deployment)
        self.model = model
        self.pace = deployment.form.pace
        self.asked = self._requests()
        self.pid = int(deployment.enclave.ready["pid"])
        self.ticks = ticks_of_family(self.pid)

    def _requests(self) -> int:
        return int(self.enclave.counters()["requests"])

    def holds(self) -> bool:
        """Whether a question that came since has the place."""
        if not eventually(lambda: self._requests() > self.asked):
            return False
        # From when it is counted to when it runs: it never ends, and nothing else computes.
        if not eventually(lambda: ticks_of_family(self.pid) > self.ticks + 30):
            return False
        return patiently(self._outcome, Code.OVERLOADED.__eq__, SECONDS) is Code.OVERLOADED

    def free(self) -> bool:
        """Whether the place becomes free long before the question's deadline, and nothing runs."""
        limit = 20 * self.pace
        freed = eventually(lambda: self._outcome(0.3) is Code.DEADLINE_EXCEEDED, limit)
        return freed and eventually(self._is_idle, limit)

    def _is_idle(self) -> bool:
        """Whether the enclave computes next to nothing for a second."""
        before = ticks_of_family(self.pid)
        time.sleep(1)
        return ticks_of_family(self.pid) <= before + 3

    def _outcome(self, seconds: float) -> Code:
        """OVERLOADED if the model's place is held, DEADLINE_EXCEEDED if it was free.

        On a slow machine a few seconds may pass before either is said.
        """
        with pytest.raises(CasemateError) as caught:
            self.client.infer(self.model, ONE, timeout_s=seconds * self.pace)
        return caught.value.code


@pytest.fixture
def watcher(deployment: LocalDeployment, endless: str) -> Iterator[Watcher]:
    policy, key = deployment.trust_policy(), deployment.clinic.signing_key
    with Client(deployment.target, policy, caller_key=key, retry=ONCE) as client:
        yield Watcher(client, deployment, endless)


def test_c5_a_cancelled_call_gives_up_its_models_place(
    deployment: LocalDeployment, endless: str, watcher: Watcher
) -> None:
    policy, key = deployment.trust_policy(), deployment.clinic.signing_key

    async def work() -> None:
        async with AsyncClient(deployment.target, policy, caller_key=key) as client:
            task = asyncio.create_task(client.infer(endless, ONE, timeout_s=110))
            assert await asyncio.to_thread(watcher.holds)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(watcher.free)

    asyncio.run(work())


@pytest.mark.parametrize("alone", [False, True], ids=["with others", "alone"])
def test_c5_a_call_cancelled_on_a_framed_connection_gives_up_its_models_place(
    deployment: LocalDeployment,
    endless: str,
    watcher: Watcher,
    monkeypatch: pytest.MonkeyPatch,
    *,
    alone: bool,
) -> None:
    """SPEC 9.6.3: on the connection that many share, and on one of its own, as large ones have."""
    if alone:
        monkeypatch.setattr(limits, "CALL_STREAM_REQUEST_MAX", 0)
    policy, key = deployment.trust_policy(), deployment.clinic.signing_key

    async def work() -> None:
        async with AsyncClient(deployment.target, policy, caller_key=key, retry=ONCE) as client:
            await until_framed(client, endless)
            task = asyncio.create_task(client.infer(endless, ONE, timeout_s=110))
            assert await asyncio.to_thread(watcher.holds)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(watcher.free)
            assert is_framed(client) != alone  # the one that was its own has ended

    asyncio.run(work())


def test_c5_a_cancelled_call_of_its_own_gives_up_its_models_place(
    deployment: LocalDeployment, watcher: Watcher
) -> None:
    """One that shares no stream with others: any gRPC client's."""
    call = start_session(deployment).seal(to_request(ONE), version=VERSION)
    sealed = b"".join(encode_sealed(call.header, call.ciphertext))
    with grpc.insecure_channel(deployment.target) as channel:
        infer: Any = channel.unary_unary("/casemate.v1.ConfidentialInference/Infer")
        asked = infer.future(sealed, timeout=110)
        assert watcher.holds()
        asked.cancel()
        assert watcher.free()


def test_c5_a_connection_hung_up_on_gives_up_its_models_place(
    deployment: LocalDeployment, watcher: Watcher
) -> None:
    """A plain frame on a connection of its own, as larger questions travel."""
    enclave, session = genuine(deployment), start_session(deployment)
    call = session.seal(to_request(ONE), version=VERSION)
    with connect(enclave.address, 60) as channel:
        sealed = b"".join(encode_sealed(call.header, call.ciphertext))
        send_frame(channel, FrameType.REQUEST, sealed, 110_000)
        assert watcher.holds()
    assert watcher.free()


def test_c5_h13_a_host_that_dies_gives_up_its_models_places(
    deployment: LocalDeployment, endless: str, watcher: Watcher
) -> None:
    policy, key = deployment.trust_policy(), deployment.clinic.signing_key

    async def work() -> None:
        with second_host(deployment) as host:
            target = host.ready["address"]
            async with AsyncClient(target, policy, caller_key=key, retry=ONCE) as client:
                task = asyncio.create_task(client.infer(endless, ONE, timeout_s=110))
                assert await asyncio.to_thread(watcher.holds)
                os.kill(host.pid, signal.SIGKILL)
                with pytest.raises(CasemateError):
                    await task

    asyncio.run(work())
    assert watcher.free()
