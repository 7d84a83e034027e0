"""Models are sealed with their weights aligned, and say and do the same."""

from __future__ import annotations

import io
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import limits
from casemate.client.onnx_alignment import aligned
from casemate.client.onnx_fields import GRAPH, INITIALIZER, Field, fields
from casemate.errors import Code, ModelError
from tests.support import onnx_bytes as onnx
from tests.support.onnx_bytes import field

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RAW_DATA, DOC_STRING = 9, 12
WIDE = limits.ONNX_WEIGHT_APART // 12 + 1  # columns, for 3 rows of floats
LARGE = np.random.default_rng(5).standard_normal((3, WIDE), np.float32)


def weight(name: str, array: np.ndarray[tuple[int, int], np.dtype[np.float32]] = LARGE) -> bytes:
    return onnx.tensor(name, onnx.FLOAT, array.shape, array.tobytes())


def model_of(*tensors: bytes) -> bytes:
    """``y = x @ w @ v``, of which ``v`` is small, and what else there is."""
    nodes = (onnx.node("MatMul", ("x", "w"), ("h",)), onnx.node("MatMul", ("h", "v"), ("y",)))
    v = onnx.tensor("v", onnx.FLOAT, (WIDE, 2), LARGE.T[:, :2].tobytes())
    return onnx.model(onnx.graph(nodes, (onnx.X,), (onnx.Y,), (v, *tensors)))


def result(model: bytes, folder: Path) -> bytes:
    source = folder / "model.onnx"
    source.write_bytes(model)
    with aligned(source, folder) as copy:
        made = copy.read_bytes()
        assert copy.name == source.name
        with aligned(copy, folder) as again:
            assert again == copy
    assert source.read_bytes() == model
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    return made


def tensors(model: bytes) -> Iterator[list[Field]]:
    file = io.BytesIO(model)
    for graph in fields(file, 0, len(model)):
        if graph.number == GRAPH:
            for tensor in fields(file, graph.start, graph.end):
                if tensor.number == INITIALIZER:
                    yield list(fields(file, tensor.start, tensor.end))


def starts(model: bytes) -> list[int]:
    """Where large weights begin."""
    data = [each for tensor in tensors(model) for each in tensor if each.number == RAW_DATA]
    return [each.start for each in data if each.end - each.start >= limits.ONNX_WEIGHT_APART]


def without_blanks(model: bytes) -> list[list[bytes]]:
    """What each tensor says, but for a documentation string of blanks that comes first."""
    said = []
    for tensor in tensors(model):
        content = [model[each.head : each.end] for each in tensor]
        first = tensor[0]
        if first.number == DOC_STRING and not model[first.start : first.end].strip(b" "):
            del content[0]
        said.append(content)
    return said


def answers(model: bytes) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    answer: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = session.run(
        ["y"], {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    )
    return answer


def test_large_weights_begin_aligned_and_answers_are_the_same(tmp_path: Path) -> None:
    names = ["w" * length for length in range(1, 20)]
    model = model_of(*map(weight, names))
    made = result(model, tmp_path)
    assert {start % 64 for start in starts(model)} > {0}
    assert {start % 64 for start in starts(made)} == {0}
    assert len(starts(made)) == len(names)
    assert len(made) - len(model) < 70 * len(names)
    assert without_blanks(made) == without_blanks(model)
    np.testing.assert_array_equal(answers(made), answers(model))


def test_what_a_weight_says_of_itself_still_counts(tmp_path: Path) -> None:
    said = weight("w") + field(DOC_STRING, b"mine")
    for shift in range(64):
        model = model_of(field(DOC_STRING, b"m" * shift) + said)
        _, tensor = tensors(made := result(model, tmp_path))
        last = [each for each in tensor if each.number == DOC_STRING][-1]
        assert made[last.start : last.end] == b"mine"
        assert [start % 64 for start in starts(made)] == [0]


@given(seed=st.integers(0, 1 << 32))
def test_any_lengths(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Those at which the length of a length changes are among them."""
    random = Random(seed)
    borders = [1 << 14, 1 << 15, 1 << 21]
    sizes = [random.choice(borders) + random.randrange(-150, 150) for _ in range(3)]
    weights = [onnx.tensor("w", onnx.FLOAT, (1,), bytes(size)) for size in sizes]
    model = model_of(*weights)
    made = result(model, tmp_path_factory.mktemp("any"))
    assert without_blanks(made) == without_blanks(model)
    unaligned = [start for start in starts(made) if start % 64]
    assert len(unaligned) <= 1  # where its own length took a byte more


@pytest.mark.parametrize("below", [1, 2, 20, 40])
def test_a_graph_whose_length_takes_a_byte_more(tmp_path: Path, below: int) -> None:
    def of(size: int) -> bytes:
        return model_of(onnx.tensor("w", onnx.FLOAT, (1,), bytes(size)))

    def length(model: bytes) -> int:
        parts = fields(io.BytesIO(model), 0, len(model))
        return next(each.end - each.start for each in parts if each.number == GRAPH)

    border, some = 1 << 21, 1 << 20
    model = of(some + border - below - length(of(some)))
    assert length(model) == border - below
    made = result(model, tmp_path)
    assert [start % 64 for start in starts(made)] == [0]
    assert (length(made) >= border) == (below < 10)
    assert without_blanks(made) == without_blanks(model)


@pytest.mark.parametrize(
    "model",
    [
        model_of(onnx.tensor("w", onnx.FLOAT, (3, 1), onnx.floats(1, 2, 3))),
        model_of(weight("w") + field(RAW_DATA, LARGE.tobytes())),  # says it twice
        b"",
    ],
)
def test_what_has_nothing_to_align_is_left_alone(tmp_path: Path, model: bytes) -> None:
    (source := tmp_path / "model.onnx").write_bytes(model)
    with aligned(source, tmp_path) as same:
        assert same == source


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    (source := tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelError) as caught, aligned(source, tmp_path):
        pass
    assert caught.value.code == Code.MODEL_MALFORMED
