"""bfloat16 on its way into onnxruntime and out of it: numpy has no such type (SPEC 5.6.2)."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime

from casemate.tensors import BFLOAT16

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]

_ONNX_BFLOAT16: Final = 16  # onnx.proto: TensorProto.DataType
_TYPE: Final = "tensor(bfloat16)"


def run_carried(
    session: onnxruntime.InferenceSession,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    options: onnxruntime.RunOptions,
) -> list[Array]:
    """Run as ``session.run`` does, with ``BFLOAT16`` where the model has bfloat16."""
    # The arrays stay referenced during the run: values of numbers do not copy them.
    values = {name: _carry(array) for name, array in inputs.items()}
    return [_fetch(value) for value in session.run_with_ort_values(outputs, values, options)]


def _carry(array: Array) -> onnxruntime.OrtValue:
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype != BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy(contiguous)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
        contiguous.view(np.uint16), _ONNX_BFLOAT16
    )


def _fetch(value: onnxruntime.OrtValue) -> Array:
    if value.data_type() != _TYPE:
        array: Array = value.numpy()
        return array
    shape = value.shape()
    count = math.prod(shape)
    if not count:
        return np.empty(shape, BFLOAT16)
    # The memory is the value's: copied before that goes.
    data = ctypes.string_at(value.data_ptr(), count * BFLOAT16.itemsize)
    return np.frombuffer(data, BFLOAT16).reshape(shape)
