"""Weights in memory that cannot be written to: operators that prepare, fold or fuse them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from casemate.sealed_model import ModelContents
from casemate.tensors import TensorSpec
from casemate_enclave.runtime import session_options
from tests.support import onnx_bytes as onnx
from tests.support.onnx_bytes import field
from tests.unit.enclave.test_runtime import HEADER, runtime, soon

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casemate_enclave.runtime import OnnxRuntime

    Array = np.ndarray[Any, Any]

__all__ = ["runtime"]  # the fixture

RANDOM = np.random.default_rng(5)
INT, INTS = 2, 7  # AttributeProto.type
_FLOAT, _INT8, _FLOAT16 = np.dtype("f4"), np.dtype("i1"), np.dtype("f2")
ELEMENTS = {_FLOAT: 1, _INT8: 3, _FLOAT16: 10}


def integer(name: str, value: int) -> bytes:
    return field(1, name) + field(3, value) + field(20, INT)


def integers(name: str, *values: int) -> bytes:
    return field(1, name) + b"".join(field(8, value) for value in values) + field(20, INTS)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape, np.float32)


def steps(*shape: int) -> Array:
    return RANDOM.integers(-99, 99, shape, np.int8)


SQUARE, IMAGE, TEXT = (4, 128), (1, 32, 9, 9), (3, 2, 64)
# What it is, the shape of x, its nodes from x to y, and its weights, all above 16 KiB.
MODELS: list[tuple[str, tuple[int, ...], Sequence[bytes], Mapping[str, Array]]] = [
    ("matmul", SQUARE, [onnx.node("MatMul", ("x", "w"), ("y",))], {"w": normal(128, 64)}),
    (
        "gemm, transposed",
        SQUARE,
        [onnx.node("Gemm", ("x", "w"), ("y",), integer("transB", 1))],
        {"w": normal(64, 128)},
    ),
    (
        "convolution and normalisation, which are fused",
        IMAGE,
        [
            onnx.node("Conv", ("x", "w"), ("h",), integers("kernel_shape", 3, 3)),
            onnx.node("BatchNormalization", ("h", "s", "b", "m", "v"), ("y",)),
        ],
        {
            "w": normal(8192, 32, 3, 3),
            **{name: normal(8192) for name in "sbm"},
            "v": np.abs(normal(8192)),
        },
    ),
    (
        "deconvolution",
        IMAGE,
        [onnx.node("ConvTranspose", ("x", "w"), ("y",))],
        {"w": normal(32, 64, 3, 3)},
    ),
    (
        "lstm",
        TEXT,
        [onnx.node("LSTM", ("x", "w", "r"), ("y",), integer("hidden_size", 64))],
        {"w": normal(1, 256, 64), "r": normal(1, 256, 64)},
    ),
    (
        "gru",
        TEXT,
        [onnx.node("GRU", ("x", "w", "r"), ("y",), integer("hidden_size", 64))],
        {"w": normal(1, 192, 64), "r": normal(1, 192, 64)},
    ),
    (
        "a transposition, which is folded",
        SQUARE,
        [
            onnx.node("Transpose", ("w",), ("t",)),
            onnx.node("MatMul", ("x", "t"), ("y",)),
        ],
        {"w": normal(64, 128)},
    ),
    (
        "half precision, cast and folded",
        SQUARE,
        [
            onnx.node("Cast", ("w",), ("t",), integer("to", 1)),
            onnx.node("MatMul", ("x", "t"), ("y",)),
        ],
        {"w": normal(128, 128).astype(np.float16)},
    ),
    (
        "dequantised",
        SQUARE,
        [
            onnx.node("DequantizeLinear", ("w", "s"), ("t",)),
            onnx.node("MatMul", ("x", "t"), ("y",)),
        ],
        {"w": steps(128, 256), "s": np.full((), 0.01, np.float32)},
    ),
    (
        "quantised",
        SQUARE,
        [
            onnx.node("DynamicQuantizeLinear", ("x",), ("q", "a", "z")),
            onnx.node("MatMulInteger", ("q", "w", "z"), ("i",)),
            onnx.node("Cast", ("i",), ("y",), integer("to", 1)),
        ],
        {"w": steps(128, 256)},
    ),
    ("sum", (4, 8192), [onnx.node("Add", ("x", "w"), ("y",))], {"w": normal(8192)}),
    (
        "the same weight twice, prepared once and used as it is once",
        (128, 128),
        [
            onnx.node("MatMul", ("x", "w"), ("h",)),
            onnx.node("Add", ("h", "w"), ("y",)),
        ],
        {"w": normal(128, 128)},
    ),
]


def rank(shape: tuple[int, ...]) -> int:
    """How many dimensions y has for such an x."""
    return 2 if len(shape) == 2 else 4


def content(shape: tuple[int, ...], nodes: Sequence[bytes], weights: Sequence[bytes]) -> bytes:
    anything = tuple(f"d{index}" for index in range(rank(shape)))
    ends = onnx.value_info("x", onnx.FLOAT, shape), onnx.value_info("y", onnx.FLOAT, anything)
    return onnx.model(onnx.graph(tuple(nodes), ends[:1], ends[1:], tuple(weights)))


@pytest.mark.parametrize(
    ("shape", "nodes", "weights"), [model[1:] for model in MODELS], ids=[m[0] for m in MODELS]
)
def test_they_answer_as_from_memory_of_their_own_and_leave_the_weights_as_they_were(
    runtime: OnnxRuntime,
    shape: tuple[int, ...],
    nodes: Sequence[bytes],
    weights: Mapping[str, Array],
) -> None:
    x = normal(*shape)
    inline = [
        onnx.tensor(name, ELEMENTS[array.dtype], array.shape, array.tobytes())
        for name, array in weights.items()
    ]
    plain = onnxruntime.InferenceSession(
        content(shape, nodes, inline),
        session_options((), 1),
        providers=["CPUExecutionProvider"],
    )
    (expected,) = plain.run(["y"], {"x": x})
    data, apart = bytearray(), []
    for name, array in weights.items():
        data += bytes(-len(data) % 64)
        where = {"location": "w", "offset": str(len(data)), "length": str(array.nbytes)}
        apart.append(onnx.external(name, ELEMENTS[array.dtype], array.shape, where))
        data += array.tobytes()
    contents = ModelContents.of({"m": content(shape, nodes, apart), "w": data})
    ends = TensorSpec("x", "FP32", shape), TensorSpec("y", "FP32", (0,) * rank(shape))
    model = runtime.load(contents, replace(HEADER, inputs=ends[:1], outputs=ends[1:]))
    for _ in range(2):
        answer = model.run({"x": x}, ["y"], soon())["y"]
        np.testing.assert_array_equal(answer, expected)
    assert contents.views()["w"] == data
