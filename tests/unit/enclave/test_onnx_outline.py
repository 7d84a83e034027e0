"""A model without its weights is the same model: nothing else changes, and they are found again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import limits
from casemate.errors import ModelError
from casemate.sealed_model import ModelContents, ModelEntry
from casemate.tensors import TensorSpec
from casemate.wire import Buffer
from casemate_enclave.onnx_outline import ITSELF, outline
from casemate_enclave.onnx_scan import external_locations, fields, message_in
from casemate_enclave.runtime import OnnxRuntime, session_options
from tests.support import onnx_bytes as onnx
from tests.support.onnx_bytes import field
from tests.support.own_process import in_own_process
from tests.unit.enclave.test_runtime import HEADER, ROWS, RUN_BYTES, load, runtime, soon

__all__ = ["runtime"]  # the fixture

SMALL = onnx.floats(1, 2, 3, 4, 5, 6)
WIDE = 4096  # 3 rows of it are 48 KiB
LARGE = np.random.default_rng(7).standard_normal((3, WIDE), np.float32)
SECOND = np.ascontiguousarray(LARGE.T[:, :2])


def wide(*tensors: bytes) -> bytes:
    """``y = x @ w @ v``: ``w`` is large, and so is ``v``."""
    nodes = (onnx.node("MatMul", ("x", "w"), ("h",)), onnx.node("MatMul", ("h", "v"), ("y",)))
    return onnx.model(onnx.graph(nodes, (onnx.X,), (onnx.Y,), tensors))


def weights() -> tuple[bytes, bytes]:
    return (
        onnx.tensor("w", onnx.FLOAT, (3, WIDE), LARGE.tobytes()),
        onnx.tensor("v", onnx.FLOAT, (WIDE, 2), SECOND.tobytes()),
    )


def initializers(model: bytes) -> Iterator[list[tuple[int, int | bytes]]]:
    for number, value, _, _ in fields(memoryview(model)):
        if number == 7:
            for inner, tensor, _, _ in fields(message_in(value)):
                if inner == 5:
                    found = fields(message_in(tensor))
                    yield [(n, v if isinstance(v, int) else bytes(v)) for n, v, _, _ in found]


def pair(entry: int | bytes) -> tuple[str, str]:
    key, value = (bytes(message_in(v)).decode() for _, v, _, _ in fields(memoryview(bytes(entry))))
    return key, value


def test_large_weights_are_references_to_where_they_lie() -> None:
    model = wide(*weights(), onnx.tensor("small", onnx.FLOAT, (3, 2), SMALL))
    written = outline(memoryview(model))
    assert len(written) < len(model) - LARGE.nbytes
    before, after = list(initializers(model)), list(initializers(written))
    assert before[2] == after[2]
    for whole, reference in zip(before[:2], after[:2], strict=True):
        where = dict(pair(value) for number, value in reference if number == 13)
        begin, size = int(where["offset"]), int(where["length"])
        assert where["location"] == ITSELF
        assert (9, model[begin : begin + size]) in whole
        assert [f for f in whole if f[0] != 9] == [f for f in reference if f[0] not in {13, 14}]
        assert (14, 1) in reference


def test_a_model_without_large_weights_stays_byte_for_byte() -> None:
    for model in (onnx.linear(), b"", field(1, 8) + field(99, b"kept") + b"\x0d1234"):
        assert outline(memoryview(model)) == model


@pytest.mark.parametrize(
    "unusual",
    [
        field(9, bytes(limits.ONNX_WEIGHT_APART)) + field(9, b"again"),
        field(9, bytes(limits.ONNX_WEIGHT_APART)) + field(4, onnx.floats(1)),
        field(9, bytes(limits.ONNX_WEIGHT_APART)) + field(14, 0),
        field(9, bytes(limits.ONNX_WEIGHT_APART)) + field(3, b""),
        field(9, bytes(limits.ONNX_WEIGHT_APART - 1)),
    ],
)
def test_a_tensor_that_says_more_is_left_to_onnxruntime(unusual: bytes) -> None:
    model = wide(field(2, onnx.FLOAT) + field(8, "w") + unusual)
    assert outline(memoryview(model)) == model


def test_no_model_refers_to_itself_before_and_no_entry_has_that_path(runtime: OnnxRuntime) -> None:
    tensor = onnx.external_tensor("w", (3, 2), location=ITSELF, offset="0", length="24")
    with pytest.raises(ModelError, match="outside"):
        load(runtime, onnx.linear(tensor))
    with pytest.raises(ModelError, match="path"):
        replace(HEADER, entries=(ModelEntry(ITSELF, 1, bytes(48)),))


@pytest.mark.parametrize("location", [True, False])
def test_it_runs_as_the_model_it_was(
    runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch, *, location: bool
) -> None:
    if not location:  # as in the process form, whose /proc shows another process
        monkeypatch.setattr(ModelContents, "location", None)
    model = load(runtime, wide(*weights()))
    answer = model.run({"x": ROWS}, ["y"], soon())["y"]
    np.testing.assert_allclose(answer, ROWS @ LARGE @ SECOND, rtol=1e-3)


@pytest.mark.parametrize("offset", [0, 64, 1, 2])
def test_weights_are_used_where_they_lie_if_they_are_aligned(offset: int) -> None:
    """Memory that is not shared grows by the weights, or not at all."""
    grown, size = in_own_process(grown_by_load, offset)
    assert grown < size / 4 if offset % 4 == 0 else grown > size * 3 / 4


def grown_by_load(offset: int) -> tuple[int, int]:
    """Load weights that begin at ``offset``; return by how much memory grew, and their size."""
    rows = 1 << 20
    table = np.arange(rows * 8, dtype=np.float32).reshape(rows, 8)
    where = {"location": "w", "offset": str(offset), "length": str(table.nbytes)}
    weights = onnx.external_tensor("w", (rows, 8), **where)
    end = onnx.value_info("n", onnx.INT64, ("n",)), onnx.value_info("y", onnx.FLOAT, ("n", 8))
    gather = onnx.node("Gather", ("w", "n"), ("y",))
    content = onnx.model(onnx.graph((gather,), end[:1], end[1:], (weights,)))
    files = {"m": content, "w": bytes(offset) + table.tobytes()}
    declared = (TensorSpec("n", "INT64", (0,)),), (TensorSpec("y", "FP32", (0, 8)),)
    header = replace(HEADER, inputs=declared[0], outputs=declared[1])
    runtime = OnnxRuntime(("CPUExecutionProvider",), run_bytes=RUN_BYTES, threads=1)
    contents, before = ModelContents.of(files), _own_memory()
    model = runtime.load(contents, header)
    grown = _own_memory() - before
    contents.close()
    answer = model.run({"n": np.array([0, rows - 1])}, ["y"], soon())["y"]
    np.testing.assert_array_equal(answer, table[[0, -1]])
    return grown, table.nbytes


def _own_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.parametrize("shape", [(3, WIDE + 1), (3, WIDE - 1), (1 << 40, 1 << 20)])
def test_a_weight_that_is_not_its_shapes_is_rejected(
    runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(ModelContents, "location", None)
    first, second = weights()
    forged = onnx.tensor("w", onnx.FLOAT, shape, LARGE.tobytes())
    load(runtime, wide(first, second))
    with pytest.raises(ModelError):
        load(runtime, wide(forged, second))


@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_bytes_are_written_or_refused(noise: bytes, at: int) -> None:
    model = wide(*weights())
    damaged = model[:at] + noise + model[at + len(noise) :]
    try:
        written = outline(memoryview(damaged))
    except ModelError:
        return
    assert len(written) <= len(damaged)


def structure(model: bytes) -> list[int]:
    """Places in ``model`` that are outside its large weights, or at their ends."""
    found = [(model.index(array.tobytes()), array.nbytes) for array in (LARGE, SECOND)]
    inside = [range(begin + 8, begin + size - 8) for begin, size in found]
    return [at for at in range(len(model)) if not any(at in span for span in inside)]


def damaged(model: bytes, places: list[int], random: Random) -> bytes:
    """``model`` with a byte or two changed, missing or added."""
    written = bytearray(model)
    for _ in range(random.choice((1, 1, 2))):
        at = random.choice(places)
        written[at : at + random.choice((0, 1, 1))] = random.randbytes(random.choice((0, 1, 1)))
    return bytes(written)


def outcome(model: bytes, files: list[tuple[str, Buffer]]) -> object:
    """What onnxruntime makes of ``model``: whether it loads, its signature, an answer."""
    providers = ["CPUExecutionProvider"]
    options = session_options(files, 1)
    try:
        session = onnxruntime.InferenceSession(model, options, providers, enable_fallback=False)
        ends = *session.get_inputs(), *session.get_outputs()
        signature = [(end.name, end.type, end.shape) for end in ends]
    except Exception:  # noqa: BLE001 - its exceptions share no base
        return None
    try:
        answers = session.run(None, {signature[0][0]: ROWS})
    except Exception:  # noqa: BLE001 - as above
        return signature
    return signature, [answer.tobytes() for answer in answers]


def test_a_damaged_model_means_the_same_with_its_weights_apart() -> None:
    model, random, compared = wide(*weights()), Random(1), 0
    places = structure(model)
    for _ in range(400):
        other = damaged(model, places, random)
        try:
            written = None if external_locations(other) else outline(memoryview(other))
        except ModelError:
            continue
        if written is not None:
            compared += 1
            assert outcome(written, [(ITSELF, other)]) == outcome(other, [])
    assert compared > 100
