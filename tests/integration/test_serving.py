"""What a model server's users expect, through the sealed path over real processes (SPEC 5.6, 8)."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import ml_dtypes
import numpy as np
import pytest

from casemate.errors import CasemateError, Code
from casemate.oip.metadata import PLATFORM, ModelMetadata
from casemate.oip.v2 import inference_pb2 as pb
from casemate.sealed_model import Serving
from casemate.tensors import DATATYPES, NUMERIC, TensorSpec, to_request
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.attacker import eventually, genuine, start_session
from tests.support.deployment import DATA
from tests.support.vendor_models import seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
ROWS = DATA.features[:4]


@pytest.fixture
def client(deployment: LocalDeployment) -> Iterator[Client]:
    with deployment.client() as connected:
        yield connected


@pytest.fixture
def served(deployment: LocalDeployment, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Seal and load a model beside version 1; return its version. Unloaded afterwards."""
    loaded: list[int] = []

    def serve(onnx: bytes, **changes: object) -> int:
        version = 100 + len(loaded)
        genuine(deployment).load(seal(deployment, tmp_path, onnx, version=version, **changes))
        loaded.append(version)
        return version

    yield serve
    for version in loaded:
        genuine(deployment).unload(MODEL, version)


def code_of(act: Callable[[], object]) -> Code:
    with pytest.raises(CasemateError) as caught:
        act()
    return caught.value.code


def sample(datatype: str) -> np.ndarray:
    """Extreme values of ``datatype``, as a person's array: [n, 2]."""
    if datatype == "BYTES":
        return np.array([["", "\u00fc"], ["a\0b", "x" * 2000]], object)
    if datatype == "BF16":
        values = [[1.5, -2.0], [float("inf"), 3.3895314e38]]
        return np.array(values, ml_dtypes.bfloat16)
    dtype = NUMERIC[datatype]
    if dtype.kind == "b":
        return np.array([[True, False]])
    facts = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([[facts.min, facts.max], [0, 1]], dtype)


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_goes_in_and_comes_out(
    client: Client, served: Callable[..., int], datatype: str
) -> None:
    spec = (datatype, (0, 2))
    version = served(
        onnx_bytes.identity(datatype),
        inputs=(TensorSpec("x", *spec),),
        outputs=(TensorSpec("y", *spec),),
    )
    array = sample(datatype)
    answer = client.infer(MODEL, {"x": array}, version=version).outputs["y"]
    assert answer.shape == array.shape
    if datatype == "BYTES":
        assert answer.tolist() == [[item.encode() for item in row] for row in array.tolist()]
    else:
        assert (answer.dtype, answer.tobytes()) == (array.dtype, array.tobytes())


def test_bfloat16_is_computed_with(client: Client, served: Callable[..., int]) -> None:
    spec = ("BF16", (0, 2))
    version = served(
        onnx_bytes.doubled("BF16"),
        inputs=(TensorSpec("x", *spec),),
        outputs=(TensorSpec("y", *spec),),
    )
    for rows in (np.array([[1.5, -2.0]]), np.empty((0, 2))):
        array = rows.astype(ml_dtypes.bfloat16)
        answer = client.infer(MODEL, {"x": array}, version=version).outputs["y"]
        np.testing.assert_array_equal(answer, array * 2)


def test_a_model_says_what_it_takes_and_gives(
    client: Client, served: Callable[..., int], deployment: LocalDeployment
) -> None:
    version = served(onnx_bytes.linear())
    known = client.metadata(MODEL, version=version)
    x, y = TensorSpec("x", "FP32", (0, 3)), TensorSpec("y", "FP32", (0, 2))
    assert known == ModelMetadata(MODEL, (1, version), PLATFORM, (x,), (y,))
    assert client.metadata(f"{MODEL}:1").inputs[0].name == "features"
    assert client.ready(f"{MODEL}:{version}")
    assert not client.ready(MODEL, version=99)
    with deployment.client() as stranger:
        stranger._parts.get().core._sessions._caller_key = None
        assert code_of(lambda: stranger.metadata(MODEL)) is Code.CALLER_REFUSED


def test_versions_are_asked_for_by_name(client: Client, served: Callable[..., int]) -> None:
    version = served(onnx_bytes.linear())
    x = {"x": np.ones((1, 3), np.float32)}
    assert client.infer(MODEL, x).version == version  # the highest
    assert client.infer(f"{MODEL}:latest", x).version == version
    assert client.infer(f"{MODEL}:{version}", x).version == version
    assert client.infer(f"{MODEL}:1", {"features": ROWS}).version == 1
    assert code_of(lambda: client.infer(f"{MODEL}:98", x)) is Code.UNKNOWN_MODEL
    assert code_of(lambda: client.infer(f"{MODEL}:1", x, version=2)) is Code.INVALID_ARGUMENT


def test_only_the_outputs_that_were_asked_for_come_back(client: Client) -> None:
    asked = client.infer(f"{MODEL}:1", {"features": ROWS}, outputs=["probabilities"])
    assert list(asked.outputs) == ["probabilities"]
    bad = {"features": ROWS}
    assert code_of(lambda: client.infer(f"{MODEL}:1", bad, outputs=["x"])) is Code.INVALID_INPUT


class Load:
    """Callers that ask one model without pause until the block ends; every failure is kept."""

    def __init__(self, world: LocalDeployment, callers: int) -> None:
        self._world = world
        self._pool = ThreadPoolExecutor(callers)
        self._stop = threading.Event()
        self._callers = callers
        self.versions: list[int] = []
        self.failures: list[Exception] = []

    def _ask(self, number: int) -> None:
        weights = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
        with self._world.client() as client:
            while not self._stop.is_set():
                x = np.full((1 + number % 3, 3), number, np.float32)
                try:
                    answer = client.infer(MODEL, {"x": x})
                    assert answer.outputs["y"].tolist() == (x @ weights).tolist()
                    self.versions.append(answer.version)
                except Exception as error:  # noqa: BLE001 - the test judges them
                    self.failures.append(error)

    def __enter__(self) -> Self:
        self._done: list[Future[None]] = [
            self._pool.submit(self._ask, number) for number in range(self._callers)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def until(self, version: int) -> None:
        """Wait until every caller is answered by ``version``."""
        last = 3 * self._callers
        answered = eventually(lambda: self.versions[-last:].count(version) == last)
        assert answered, (self.versions[-5:], self.failures[:1])


@pytest.mark.slow
@pytest.mark.parametrize("serving", [Serving(), Serving(0, batch_rows=32)], ids=["", "joined"])
def test_a_model_is_replaced_under_load_without_one_failed_request(
    deployment: LocalDeployment, tmp_path: Path, serving: Serving
) -> None:
    """Ten replacements while eight clients ask for the latest version as fast as they can."""
    enclave = genuine(deployment)
    files = [
        seal(deployment, tmp_path, onnx_bytes.linear(), version=version, serving=serving)
        for version in range(200, 211)
    ]
    enclave.load(files[0])
    try:
        with Load(deployment, callers=8) as load:
            load.until(200)
            for version, content in enumerate(files[1:], 201):
                enclave.load(content, replaces=version - 1)
                load.until(version)
        assert load.failures == []
        assert sorted(set(load.versions)) == list(range(200, 211))
    finally:
        enclave.unload(MODEL, max(model["version"] for model in enclave.models()["models"]))


def test_c5_a_flood_of_endless_runs_holds_its_own_models_places_alone(
    deployment: LocalDeployment, tmp_path: Path
) -> None:
    """The model's publisher gave it two places, no queue, three seconds: others go on at once."""
    scalar = {"inputs": (TensorSpec("x", "FP32", ()),), "outputs": (TensorSpec("y", "FP32", ()),)}
    bounds = Serving(concurrency=2, queue=0, run_ms=3000)
    enclave, pace = genuine(deployment), deployment.form.pace
    endless = seal(
        deployment, tmp_path, onnx_bytes.endless(), version=300, serving=bounds, **scalar
    )
    enclave.load(endless)
    try:
        with deployment.client() as client, ThreadPoolExecutor(16) as pool:
            client.infer(f"{MODEL}:1", {"features": ROWS})
            allowed = 100 * pace

            def ask() -> Code:
                one = np.ones((), np.float32)
                return code_of(lambda: client.infer(f"{MODEL}:300", {"x": one}, timeout_s=allowed))

            begun = time.monotonic()
            outcomes = [pool.submit(ask) for _ in range(16)]
            served = 0
            while not all(outcome.done() for outcome in outcomes):
                client.infer(f"{MODEL}:1", {"features": ROWS})
                served += 1
            assert time.monotonic() - begun < allowed * 0.6
        codes = [outcome.result() for outcome in outcomes]
        assert codes.count(Code.DEADLINE_EXCEEDED) >= 2
        assert set(codes) <= {Code.DEADLINE_EXCEEDED, Code.OVERLOADED}
        assert served > 0
    finally:
        enclave.unload(MODEL, 300)


def test_the_requests_own_timeout_ends_its_run(
    deployment: LocalDeployment, served: Callable[..., int]
) -> None:
    scalar = {"inputs": (TensorSpec("x", "FP32", ()),), "outputs": (TensorSpec("y", "FP32", ()),)}
    version = served(onnx_bytes.endless(), **scalar)
    message = pb.ModelInferRequest.FromString(to_request({"x": np.ones((), np.float32)}))
    message.parameters["timeout"].int64_param = 200_000
    begun = time.monotonic()
    session = start_session(deployment)
    answer = session.ask(genuine(deployment), message.SerializeToString(), version=version)
    assert answer.trailer.status is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 20
