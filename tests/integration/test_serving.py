"""What a model server's users expect, through the sealed path over real processes (SPEC 5.6, 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest

from casemate.errors import CasemateError, Code
from casemate.oip.metadata import PLATFORM, ModelMetadata
from casemate.tensors import DATATYPES, NUMERIC, TensorSpec
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.attacker import genuine
from tests.support.deployment import DATA
from tests.support.vendor_models import seal

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
