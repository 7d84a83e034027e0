"""The four models that every server serves, written field by field with fixed random weights."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from casemate.sealed_model.header import ModelEntry, ModelHeader
from casemate.sealed_model.parts import digest_of
from casemate.sealed_model.serving import Serving
from casemate.tensors import TensorSpec
from tests.support.onnx_bytes import FLOAT, field, graph, model, node, tensor, value_info

_INTS: Final = 7  # onnx.proto AttributeProto.type
_WDBC: Final = Path(__file__).resolve().parents[2] / "examples/wdbc/wdbc.onnx"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class BenchModel:
    """One model; shapes of one row, without the batch dimension in front."""

    name: str
    about: str
    inputs: dict[str, Shape]
    outputs: dict[str, tuple[str, Shape]]  # name to datatype and shape

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The inputs as a sealed model states them; the first dimension counts rows."""
        return tuple(TensorSpec(name, "FP32", (0, *shape)) for name, shape in self.inputs.items())

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The outputs, likewise."""
        pairs = self.outputs.items()
        return tuple(TensorSpec(name, kind, (0, *shape)) for name, (kind, shape) in pairs)

    def row(self, seed: int = 0) -> dict[str, np.ndarray]:
        """One question: every input as a batch of one, float32."""
        random = np.random.default_rng(seed)
        return {name: random.random((1, *shape), np.float32) for name, shape in self.inputs.items()}


SMALL = BenchModel(
    "small",
    "30-feature classifier (the example's), 120 bytes in",
    {"features": (30,)},
    {"label": ("INT64", ()), "probabilities": ("FP32", (2,))},
)
MLP = BenchModel("mlp", "6 layers of 1024, 4 KiB in", {"x": (1024,)}, {"y": ("FP32", (1024,))})
IMAGE = BenchModel(
    "image", "3 x 224 x 224 image, 588 KiB in", {"x": (3, 224, 224)}, {"y": ("FP32", (10,))}
)
SLOW = BenchModel(
    "slow",
    "5 convolutions of 64 channels, 20 ms or more",
    {"x": (3, 48, 48)},
    {"y": ("FP32", (10,))},
)
SERVING: Final = Serving(batch_dimension=0, batch_rows=32)
MODELS: Final = {each.name: each for each in (SMALL, MLP, IMAGE, SLOW)}


def write_models(folder: Path) -> None:
    """Write ``NAME.onnx`` for each model, and ``models.json``, which the peers' servers read."""
    for name, content in (
        ("small", _WDBC.read_bytes()),
        ("mlp", _mlp()),
        ("image", _image()),
        ("slow", _slow()),
    ):
        (folder / f"{name}.onnx").write_bytes(content)
    facts = {m.name: {"inputs": m.inputs, "outputs": m.outputs} for m in MODELS.values()}
    (folder / "models.json").write_text(json.dumps(facts))


def header_of(name: str, content: bytes) -> ModelHeader:
    """What a publisher would state of the model; nothing here is sealed by it."""
    facts = MODELS[name]
    entry = ModelEntry(f"{name}.onnx", len(content), digest_of(content))
    return ModelHeader(
        file_id=bytes(32),
        key_commitment=bytes(32),
        publisher=bytes(32),
        name=name,
        version=1,
        inputs=facts.input_specs,
        outputs=facts.output_specs,
        answer_bucket=1024,
        callers="any",
        runtime="onnx",
        kms_key=f"arn:aws:kms:eu-central-1:111122223333:key/{'0' * 8}-0000-4000-8000-{'0' * 12}",
        wrapped_key=b"none",
        entries=(entry,),
        serving=SERVING,
    )


def _weights(name: str, *shape: int) -> bytes:
    # A product with such weights keeps the size of its input, so that no layer overflows.
    scale = (2.0 / np.prod(shape[1:] if len(shape) > 1 else shape)) ** 0.5
    random = np.random.default_rng(
        zlib.crc32(name.encode())
    )  # no two alike: onnxruntime shares them
    values = (random.standard_normal(shape) * scale).astype(np.float32)
    return tensor(name, FLOAT, shape, values.tobytes())


def _mlp() -> bytes:
    nodes, weights, last = [], [], "x"
    for layer in range(6):
        target = f"r{layer}" if layer < 5 else "y"
        nodes.append(node("MatMul", (last, f"w{layer}"), (f"m{layer}",)))
        nodes.append(node("Relu", (f"m{layer}",), (target,)))
        weights.append(_weights(f"w{layer}", 1024, 1024))
        last = target
    return _model(nodes, weights, (1024,), (1024,))


def _image() -> bytes:
    nodes = [_conv("x", "w0", "c0", kernel=7, stride=4), node("Relu", ("c0",), ("r0",))]
    return _model(
        [*nodes, *_head("r0")],
        [_weights("w0", 16, 3, 7, 7), _weights("wh", 16, 10)],
        (3, 224, 224),
        (10,),
    )


def _slow() -> bytes:
    nodes, weights, last = [], [], "x"
    for layer in range(5):
        nodes.append(_conv(last, f"w{layer}", f"c{layer}", kernel=3, stride=1))
        nodes.append(node("Relu", (f"c{layer}",), (f"r{layer}",)))
        weights.append(_weights(f"w{layer}", 64, 64 if layer else 3, 3, 3))
        last = f"r{layer}"
    return _model([*nodes, *_head(last)], [*weights, _weights("wh", 64, 10)], (3, 48, 48), (10,))


def _conv(source: str, weights: str, target: str, *, kernel: int, stride: int) -> bytes:
    pad = kernel // 2
    return node(
        "Conv",
        (source, weights),
        (target,),
        _ints("kernel_shape", kernel, kernel),
        _ints("strides", stride, stride),
        _ints("pads", pad, pad, pad, pad),
    )


def _head(source: str) -> list[bytes]:
    return [
        node("GlobalAveragePool", (source,), ("pooled",)),
        node("Flatten", ("pooled",), ("flat",)),
        node("MatMul", ("flat", "wh"), ("y",)),
    ]


def _ints(name: str, *values: int) -> bytes:
    return field(1, name) + b"".join(field(8, value) for value in values) + field(20, _INTS)


def _model(nodes: list[bytes], weights: list[bytes], source: Shape, target: Shape) -> bytes:
    x, y = value_info("x", FLOAT, ("n", *source)), value_info("y", FLOAT, ("n", *target))
    return model(graph(tuple(nodes), (x,), (y,), tuple(weights)))


def asking(name: str, message: bytes) -> bytes:
    """Return what asks ``name`` of the plain twin behind the host's front."""
    return name.encode() + b"\0" + message


def asked(payload: bytes) -> tuple[str, bytes]:
    """Return name and message of what `asking` made."""
    name, _, message = payload.partition(b"\0")
    return name.decode(), message
