"""A model that computes for a while: products of square matrices that depend on its input."""

from __future__ import annotations

import numpy as np

from tests.support.onnx_bytes import FLOAT, graph, model, node, tensor, value_info

SIDE = 512


def busy_model(products: int = 2) -> bytes:
    """``y`` [1, 1] from ``x`` [1, 1]; each product of 512 by 512 matrices takes some 5 ms."""
    weights = np.full((SIDE, SIDE), 1 / SIDE, np.float32)
    shape = np.array([1, 1], np.int64)
    nodes = [node("Add", ("w", "x"), ("a0",))]
    nodes += [node("MatMul", (f"a{i}", "w"), (f"a{i + 1}",)) for i in range(products)]
    nodes += [node("ReduceMean", (f"a{products}",), ("m",))]
    nodes += [node("Reshape", ("m", "shape"), ("y",))]
    return model(
        graph(
            tuple(nodes),
            (value_info("x", FLOAT, (1, 1)),),
            (value_info("y", FLOAT, (1, 1)),),
            (
                tensor("w", FLOAT, (SIDE, SIDE), weights.tobytes()),
                tensor("shape", 7, (2,), shape.tobytes()),
            ),
        )
    )
