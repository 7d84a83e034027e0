"""Read the inputs and outputs of an ONNX model without a model runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from casemate.errors import Code, ModelError
from casemate.onnx.signature_pb2 import Model
from casemate.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def read_signature(model: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the model's inputs and outputs; a symbolic dimension becomes 0 (any).

    Raises ModelError(MODEL_MALFORMED) for what is not an ONNX model with tensor inputs and outputs.
    """
    try:
        graph = Model.FromString(model).graph
    except DecodeError:
        raise ModelError(Code.MODEL_MALFORMED, "not an ONNX model") from None
    initialisers = {tensor.name for tensor in graph.initializer}
    inputs = _specs(info for info in graph.input if info.name not in initialisers)
    outputs = _specs(graph.output)
    if not inputs or not outputs:
        raise ModelError(Code.MODEL_MALFORMED, "not an ONNX model: no inputs or no outputs")
    return inputs, outputs


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
