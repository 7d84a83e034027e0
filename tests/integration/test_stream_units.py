"""Several messages in one unit of a stream, through client, host and enclave (SPEC 5.9.8)."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate.client import Client
from casemate.envelope.streaming import SealedStream
from casemate.errors import CasemateError, Code, RequestError
from casemate.sealed_model import Serving
from casemate.tensors import TensorSpec
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.aio import LoopedClient
from tests.support.attacker import (
    TIMEOUT_S,
    EnclaveSocket,
    eventually,
    genuine,
)
from tests.support.vendor_models import seal
from tests.support.workers import ticks_of_family

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration

PICKING, ALONE, TIMES = range(521, 524)
WIDTH = 8
TABLE = [10.0, 20.0, 30.0]
POISON = 1000  # an index that the table does not have: the run fails, whoever's rows are in it
IO: dict[str, Any] = {
    "inputs": (TensorSpec("x", "FP32", (0, WIDTH)), TensorSpec("index", "INT64", (0,))),
    "outputs": (TensorSpec("y", "FP32", (0, WIDTH)), TensorSpec("picked", "FP32", (0,))),
}
REPEATED: dict[str, Any] = {
    "inputs": (TensorSpec("x", "FP32", (0,)), TensorSpec("n", "INT64", (0,))),
    "outputs": (TensorSpec("y", "FP32", (0,)),),
}


def load(world: LocalDeployment, folder: Path, version: int, serving: Serving) -> None:
    onnx = onnx_bytes.guarded_mlp(WIDTH, 1)
    genuine(world).load(seal(world, folder, onnx, version=version, serving=serving, **IO))


@pytest.fixture(scope="module")
def world(
    deployment: LocalDeployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalDeployment]:
    folder = tmp_path_factory.mktemp("picking")
    load(deployment, folder, PICKING, Serving(0, batch_rows=24))
    load(deployment, folder, ALONE, Serving())
    times = onnx_bytes.repeating("k")  # of several rows its runs fail
    serving = Serving(0, batch_rows=8, concurrency=3)
    genuine(deployment).load(
        seal(deployment, folder, times, version=TIMES, serving=serving, **REPEATED)
    )
    yield deployment
    for version in (PICKING, ALONE, TIMES):
        genuine(deployment).unload(MODEL, version)


@pytest.fixture
def enclave(world: LocalDeployment) -> EnclaveSocket:
    return genuine(world)


@pytest.fixture(params=[Client, LoopedClient], ids=["threads", "asyncio"])
def client(world: LocalDeployment, request: pytest.FixtureRequest) -> Iterator[Client]:
    policy, key = world.trust_policy(), world.clinic.signing_key
    with request.param(world.target, policy, caller_key=key) as connected:
        for version in (PICKING, ALONE):  # so that it knows how many may be asked together
            connected.infer(MODEL, picking(0), version=version)
        connected.infer(MODEL, times(1), version=TIMES)
        yield connected


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many units had how many questions, as this process sealed them."""
    seen: Counter[int] = Counter()
    sealing = SealedStream.question

    def counted(self: SealedStream, *messages: Any) -> Any:  # noqa: ANN401 - as it is
        seen[len(messages)] += 1
        return sealing(self, *messages)

    monkeypatch.setattr(SealedStream, "question", counted)
    return seen


def picking(*index: int) -> dict[str, np.ndarray]:
    x = np.ones((len(index), WIDTH), np.float32)
    return {"x": x, "index": np.array(index, np.int64)}


# Through the clients


def test_answers_come_in_order_and_few_units_carry_them(
    client: Client, units: Counter[int]
) -> None:
    asked = [at % 3 for at in range(400)]
    with client.stream(MODEL, version=PICKING, outputs=["picked"]) as stream:
        answers = [*stream.map(picking(index) for index in asked)]
    assert [answer.outputs["picked"].tolist() for answer in answers] == [
        [TABLE[index]] for index in asked
    ]
    assert 1 < max(units) <= 24


def test_answers_that_were_read_together_are_each_whole(client: Client) -> None:
    """They are numbers of one's own, aligned, and nobody can change them."""
    with client.stream(MODEL, version=PICKING) as stream:
        answers = [*stream.map(picking(at % 3) for at in range(100))]
    for at, answer in enumerate(answers):
        assert answer.outputs["picked"].tolist() == [TABLE[at % 3]]
        for array in answer.outputs.values():
            assert array.flags.aligned
            assert not array.flags.writeable
        assert (answer.model, answer.version, answer.receipt) == (MODEL, PICKING, None)
    alone = client.infer(MODEL, picking(0), version=PICKING)
    assert alone.outputs["y"].tobytes() == answers[0].outputs["y"].tobytes()


def test_what_is_wrong_with_one_is_no_others(client: Client, units: Counter[int]) -> None:
    """One that is refused, and one that makes the joined run fail, in the midst of good ones."""
    bad = {"x": np.ones((1, WIDTH), np.float32)}
    asked = [
        bad if at % 11 == 3 else picking(POISON if at % 7 == 5 else at % 3) for at in range(120)
    ]
    with client.stream(MODEL, version=PICKING, outputs=["picked"]) as stream:
        assert len([*stream.map([picking(0)] * 3)]) == 3
        futures = [stream.submit(one) for one in asked]
        for at, future in enumerate(futures):
            if at % 11 == 3 or at % 7 == 5:
                with pytest.raises(RequestError) as caught:
                    future.result(TIMEOUT_S)
                code = Code.INVALID_INPUT if at % 11 == 3 else Code.MODEL_FAILED
                assert caught.value.code is code
            else:
                assert future.result(TIMEOUT_S).outputs["picked"].tolist() == [TABLE[at % 3]]
    assert max(units) > 1


def test_questions_of_different_shapes_in_one_unit(client: Client, units: Counter[int]) -> None:
    asked = [[at % 3] * (1 + at % 3) for at in range(200)]
    with client.stream(MODEL, version=PICKING, outputs=["picked"]) as stream:
        answers = [*stream.map(picking(*index) for index in asked)]
    assert [answer.outputs["picked"].tolist() for answer in answers] == [
        [TABLE[at] for at in index] for index in asked
    ]
    assert max(units) > 1


def test_with_receipts_and_where_nothing_is_joined_each_has_its_unit(
    client: Client, units: Counter[int]
) -> None:
    for version, receipts in ((PICKING, True), (ALONE, False)):
        with client.stream(MODEL, version=version, receipts=receipts) as stream:
            answers = [*stream.map(picking(at % 3) for at in range(60))]
        assert len(answers) == 60
        assert {answer.receipt is not None for answer in answers} == {receipts}
    assert {*units} == {1}


def test_a_stream_learns_from_its_own_answers_how_many_it_may_ask_together(
    world: LocalDeployment, units: Counter[int]
) -> None:
    with world.client() as client, client.stream(MODEL, version=PICKING) as stream:
        assert len([*stream.map([picking(1)] * 32)]) == 32
        assert {*units} == {1}
        assert len([*stream.map([picking(1)] * 600)]) == 600
    assert max(units) > 1
    assert sum(units.values()) < 300


def times(count: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros(1, np.float32), "n": np.array([count], np.int64)}


def test_a_run_that_does_not_end_ends_with_its_stream(
    client: Client, world: LocalDeployment, units: Counter[int]
) -> None:
    """Those of its unit wait for it, others of the stream do not."""
    stream = client.stream(MODEL, version=TIMES, timeout_s=60)
    assert len([*stream.map([times(1)] * 100)]) == 100
    assert max(units) > 1
    for _ in range(3):
        stream.submit(times(2))
    endless = stream.submit(times(1 << 62))
    time.sleep(0.2)
    after = [stream.submit(times(3)) for _ in range(3)]
    assert [future.result(TIMEOUT_S).outputs["y"].tolist() for future in after] == [[3]] * 3
    assert not endless.done()
    stream.cancel()
    with pytest.raises(CasemateError):
        endless.result(TIMEOUT_S)
    assert world.enclave is not None
    pid = int(world.enclave.ready["pid"])

    def rests() -> bool:
        ticks = ticks_of_family(pid)
        time.sleep(0.5)
        return ticks_of_family(pid) - ticks < 5

    assert eventually(rests, 20)
