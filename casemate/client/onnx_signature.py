"""Read the inputs and outputs of an ONNX model without a model runtime, and without its weights.

The file is walked field by field and what is not asked for is skipped, so that memory does not grow
with the model.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO, Final

from google.protobuf.message import DecodeError

from casemate import limits
from casemate.client.onnx_fields import GRAPH, INITIALIZER, fields, not_onnx
from casemate.errors import Code, ModelError
from casemate.onnx.signature_pb2 import Graph
from casemate.protowire import bytes_head
from casemate.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casemate.onnx.signature_pb2 import ValueInfo

# onnx.proto TensorProto.DataType -> Open Inference Protocol v2 datatype
_DATATYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}


# onnx.proto: GraphProto, TensorProto
_INPUT, _OUTPUT = 11, 12
_NAME: Final = 8


def read_signature(model: BinaryIO) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the model's inputs and outputs; a symbolic dimension becomes 0 (any).

    ``model`` is a seekable file that stands at its start. Raises ModelError(MODEL_MALFORMED) for
    what is not an ONNX model with tensor inputs and outputs.
    """
    try:
        graph = Graph.FromString(_without_weights(model))
    except DecodeError:
        raise not_onnx() from None
    initialisers = {tensor.name for tensor in graph.initializer}
    inputs = _specs(info for info in graph.input if info.name not in initialisers)
    outputs = _specs(graph.output)
    if not inputs or not outputs:
        raise ModelError(Code.MODEL_MALFORMED, "not an ONNX model: no inputs or no outputs")
    return inputs, outputs


def _without_weights(model: BinaryIO) -> bytes:
    """Return the graph's inputs, outputs and names of initialisers, as a graph of its own."""
    kept = bytearray()
    for number, _, start, end in fields(model, 0, model.seek(0, os.SEEK_END)):
        # protobuf reads a message that occurs twice as one, and so does this.
        for field in _kept_fields(model, start, end) if number == GRAPH else ():
            kept += field
            if len(kept) > limits.ONNX_SIGNATURE_MAX:
                raise ModelError(Code.MODEL_MALFORMED, "too many inputs, outputs and initialisers")
    return bytes(kept)


def _kept_fields(model: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    for number, _, at, until in fields(model, start, end):
        if number in {_INPUT, _OUTPUT}:
            content = _content(model, at, until)
        elif number == INITIALIZER:
            spans = [span for name, _, *span in fields(model, at, until) if name == _NAME]
            content = b"".join(_field(_NAME, _content(model, *span)) for span in spans)
        else:
            continue
        yield _field(number, content)


def _field(number: int, content: bytes) -> bytes:
    return bytes_head(number, len(content)) + content


def _content(model: BinaryIO, start: int, end: int) -> bytes:
    if end - start > limits.ONNX_SIGNATURE_MAX:
        raise ModelError(Code.MODEL_MALFORMED, "not an ONNX model: a description is too long")
    model.seek(start)
    return model.read(end - start)


def _specs(infos: Iterable[ValueInfo]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(info) for info in infos)


def _spec(info: ValueInfo) -> TensorSpec:
    tensor = info.type.tensor_type
    datatype = _DATATYPES.get(tensor.elem_type)
    if datatype is None or not info.type.HasField("tensor_type"):
        detail = f"{info.name!r} is not a tensor of a datatype that can be served"
        raise ModelError(Code.MODEL_MALFORMED, detail)
    shape = tuple(max(0, dimension.dim_value) for dimension in tensor.shape.dim)
    return TensorSpec(info.name, datatype, shape)
