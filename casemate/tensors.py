"""Open Inference Protocol v2 tensors and numpy arrays; the only place where one becomes the other.

Requests are read strictly and completely before an array is made: a refusal has cost no memory.
Errors name tensors, datatypes and shapes, never values.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from casemate import limits, protowire
from casemate.errors import Code, RequestError
from casemate.oip import strings
from casemate.oip.messages import (
    REQUEST_RAW,
    RESPONSE_RAW,
    Described,
    Description,
    MessageReader,
    invalid_request,
)
from casemate.oip.v2 import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from casemate.wire import Buffer

    Array = npt.NDArray[Any]
    _Tensor = tuple[str, str, tuple[int, ...]]  # as in ``Description``

BYTES: Final = "BYTES"
# numpy has no bfloat16: here a type of its own, around the 16 bits (SPEC 5.6.2).
BFLOAT16: Final = np.dtype([("bfloat16", "<u2")])
NUMERIC: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES: Final = frozenset(NUMERIC) | {BYTES}

_CHECKED: Final = frozenset({"BOOL", BYTES})  # whose contents may be bad at their right length
_SMALL: Final = 4 * limits.KIB  # a copy of so much costs less than a view of it
_NAMES: Final = {dtype: name for name, dtype in NUMERIC.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as a model declares it (SPEC 8.2): 0 in ``shape`` stands for any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class InferRequest(NamedTuple):
    """What a ``ModelInferRequest`` asks: arrays by name, the outputs wanted, and how.

    ``id`` is to be echoed; ``timeout_us``: microseconds that the sender allows, None without limit.
    """

    inputs: dict[str, Array]
    outputs: tuple[str, ...]
    id: str
    timeout_us: int | None


class _Layout(NamedTuple):
    """How a described tensor lies in its raw contents; without a dtype it has strings."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    length: int
    size: int  # in bytes; of strings only their own lengths tell


class _Asked(NamedTuple):
    """What a request says beside its contents, found to fit the model."""

    layouts: list[_Layout]
    requested: tuple[str, ...]
    id: str
    timeout_us: int | None


def _invalid_input(name: str, detail: str) -> RequestError:
    return RequestError(Code.INVALID_INPUT, f"tensor {name[:64]!r}: {detail}")


# Writing


def to_request(inputs: Mapping[str, Array], outputs: Sequence[str] = ()) -> bytes:
    """Return a ``ModelInferRequest`` of ``inputs``; no ``outputs`` asks for all of them.

    Strings may be ``str``, which is sent as UTF-8, or ``bytes``; the type ``bfloat16`` of the
    package ml_dtypes is sent as BF16. Raises RequestError (INVALID_INPUT) for a dtype that the
    protocol does not have.
    """
    return b"".join(request_pieces(inputs, outputs))


def request_pieces(inputs: Mapping[str, Array], outputs: Sequence[str] = ()) -> list[Buffer]:
    """Return what ``to_request`` does in pieces, tensors that are not small as views."""
    tensors, contents = _contents(REQUEST_RAW, inputs)
    return [_described_request(tensors, tuple(outputs)), *contents]


def to_response(
    outputs: Mapping[str, Array], model: str, version: int, request_id: str = ""
) -> bytes:
    """Return a ``ModelInferResponse`` of ``outputs``; raises as ``to_request``."""
    return b"".join(response_pieces(outputs, model, version, request_id))


def response_pieces(
    outputs: Mapping[str, Array], model: str, version: int, request_id: str = ""
) -> list[Buffer]:
    """Return what ``to_response`` does in pieces, tensors that are not small as views."""
    tensors, contents = _contents(RESPONSE_RAW, outputs)
    describe = _described_response.__wrapped__ if request_id else _described_response
    return [describe(tensors, model, version, request_id), *contents]


# Nearly all messages describe the same few tensors, and a description has no value of any.


@functools.lru_cache(maxsize=limits.DESCRIPTIONS_KEPT)
def _described_request(tensors: tuple[_Tensor, ...], outputs: tuple[str, ...]) -> bytes:
    message = pb.ModelInferRequest()
    for name, datatype, shape in tensors:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    for name in outputs:
        message.outputs.add(name=name)
    return message.SerializeToString()


@functools.lru_cache(maxsize=limits.DESCRIPTIONS_KEPT)
def _described_response(
    tensors: tuple[_Tensor, ...], model: str, version: int, request_id: str
) -> bytes:
    message = pb.ModelInferResponse(model_name=model, model_version=str(version), id=request_id)
    for name, datatype, shape in tensors:
        message.outputs.add(name=name, datatype=datatype, shape=shape)
    return message.SerializeToString()


def request_lead(head: memoryview) -> int:
    """Return where in the beginning of a ``ModelInferRequest`` its first long tensor lies, or 0.

    A reader that lays the message out so that this place is aligned need not copy the tensor.
    """
    return protowire.locate(head, REQUEST_RAW, limits.STREAM_LONG)


def response_lead(head: memoryview) -> int:
    """Return the same of a ``ModelInferResponse``."""
    return protowire.locate(head, RESPONSE_RAW, limits.STREAM_LONG)


def _contents(number: int, arrays: Mapping[str, Array]) -> tuple[tuple[_Tensor, ...], list[Buffer]]:
    """Return how a message describes ``arrays``, and the fields ``number`` that end it."""
    tensors: list[_Tensor] = []
    contents: list[Buffer] = []
    for name, given in arrays.items():
        array, datatype = given, _NAMES.get(given.dtype)
        if datatype is None:
            array, datatype = _converted(name, given)
        size = array.nbytes
        raw: Buffer = array.tobytes() if size <= _SMALL else _view(array)
        contents += (protowire.bytes_head(number, size), raw)
        tensors.append((name, datatype, given.shape))
    return tuple(tensors), contents


def _view(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _converted(name: str, array: Array) -> tuple[Array, str]:
    """Return ``array`` as the protocol has it, little-endian or packed; raises RequestError."""
    if array.dtype.kind in "OSU":
        try:
            return np.frombuffer(strings.pack(array.reshape(-1).tolist()), np.uint8), BYTES
        except TypeError:
            raise _invalid_input(name, "an element is neither text nor bytes") from None
    if array.dtype.name == "bfloat16":
        return array.view(BFLOAT16), _NAMES[BFLOAT16]
    dtype = array.dtype.newbyteorder("<")
    datatype = _NAMES.get(dtype)
    if datatype is None:
        raise _invalid_input(name, f"dtype {array.dtype} is not one of the protocol's")
    return array.astype(dtype), datatype


# Reading


class RequestReader:
    """Reads the requests of one model; thread-safe."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """``inputs``: all that the model takes; ``outputs``: what it gives if none is requested."""
        self._inputs = {spec.name: spec for spec in inputs}
        self._outputs = [spec.name for spec in outputs]
        self._messages = MessageReader(REQUEST_RAW, self._asked)

    def read(self, message: Buffer) -> InferRequest:
        """Return the arrays of a ``ModelInferRequest`` and what it asks for.

        Every input of the model is there, with its datatype and a shape that it allows. Arrays of
        numbers are read-only views of ``message``, aligned or not; strings are ``str``.
        Raises RequestError: INVALID_REQUEST for the message, INVALID_INPUT for what it says about
        tensors.
        """
        asked, raws = self._messages.read(memoryview(message))
        arrays = _arrays(asked.layouts, raws, text=True, align=False)
        return InferRequest(arrays, asked.requested, asked.id, asked.timeout_us)

    def _asked(self, described: Described) -> _Asked:
        _check_names([tensor.name for tensor in described.tensors], self._inputs)
        layouts = _layouts(described.tensors)
        for layout in layouts:
            _check_spec(layout, self._inputs[layout.name])
        requested = _check_requested(described.requested, self._outputs)
        return _Asked(layouts, tuple(requested), described.id, described.timeout_us)


def read_request(
    message: Buffer, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """Read one request, as ``RequestReader``."""
    return RequestReader(inputs, outputs).read(message)


def from_response(message: Buffer) -> dict[str, Array]:
    """Return the arrays of a ``ModelInferResponse``, read-only, aligned; strings are ``bytes``.

    BF16 comes as ``BFLOAT16``, which ``view(ml_dtypes.bfloat16)`` turns into numbers.

    Raises RequestError as ``RequestReader.read``.
    """
    layouts, raws = _RESPONSES.read(memoryview(message))
    return _arrays(layouts, raws, text=False, align=True)


def _answered(described: Described) -> list[_Layout]:
    layouts = _layouts(described.tensors)
    if len({layout.name for layout in layouts}) != len(layouts):
        raise invalid_request("an output is named twice")
    return layouts


_RESPONSES: Final = MessageReader(RESPONSE_RAW, _answered)


def _check_names(names: list[str], specs: Mapping[str, TensorSpec]) -> None:
    for name in names:
        if name not in specs:
            raise _invalid_input(name, f"no such input; the model has {', '.join(specs)[:200]}")
        if names.count(name) > 1:
            raise _invalid_input(name, "given more than once")
    for name in specs:
        if name not in names:
            raise _invalid_input(name, "missing")


def _check_requested(requested: list[str], known: list[str]) -> list[str]:
    for name in requested:
        if name not in known:
            raise _invalid_input(name, f"no such output; the model has {', '.join(known)[:200]}")
        if requested.count(name) > 1:
            raise _invalid_input(name, "requested more than once")
    return requested or known


def _check_spec(tensor: _Layout, spec: TensorSpec) -> None:
    if tensor.datatype != spec.datatype:
        raise _invalid_input(
            tensor.name, f"datatype {tensor.datatype}, the model takes {spec.datatype}"
        )
    fits = len(tensor.shape) == len(spec.shape) and all(
        want in (0, got) for got, want in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        takes = ", ".join("any" if want == 0 else str(want) for want in spec.shape)
        raise _invalid_input(tensor.name, f"shape {list(tensor.shape)}, the model takes [{takes}]")


def _layouts(described: Sequence[Description]) -> list[_Layout]:
    """Return how each tensor lies in its raw contents; raises RequestError (INVALID_INPUT)."""
    layouts = []
    texts = 0
    for tensor in described:
        layout = _layout(tensor)
        texts += layout.length if layout.dtype is None else 0
        layouts.append(layout)
        if texts > limits.STRINGS_MAX:
            detail = f"more than {limits.STRINGS_MAX} strings in one message"
            raise _invalid_input(tensor.name, detail)
    return layouts


def _layout(tensor: Description) -> _Layout:
    name, datatype, shape = tensor
    if len(shape) > limits.RANK_MAX:
        raise _invalid_input(name, f"rank {len(shape)}, limit {limits.RANK_MAX}")
    # Counting an empty dimension as one keeps an empty tensor from naming absurd lengths.
    if min(shape, default=0) < 0 or (
        math.prod(length or 1 for length in shape) > limits.ELEMENTS_MAX
    ):
        raise _invalid_input(name, f"shape {list(shape)} is out of bounds")
    count = math.prod(shape)
    if datatype == BYTES:
        if count > limits.STRINGS_MAX:
            raise _invalid_input(name, f"{count} strings, limit {limits.STRINGS_MAX}")
        return _Layout(name, datatype, shape, None, count, 0)
    dtype = NUMERIC.get(datatype)
    if dtype is None:
        raise _invalid_input(name, f"unknown datatype {datatype[:16]!r}")
    return _Layout(name, datatype, shape, dtype, count, count * dtype.itemsize)


def _arrays(
    layouts: Sequence[_Layout], raws: Sequence[memoryview], *, text: bool, align: bool
) -> dict[str, Array]:
    """Return the tensors by name; no array is made before all raw contents were found to fit."""
    if len(layouts) != len(raws):
        raise invalid_request(f"{len(layouts)} tensors and {len(raws)} raw contents")
    for layout, raw in zip(layouts, raws, strict=True):
        if len(raw) != layout.size or layout.datatype in _CHECKED:
            _check_fit(layout, raw)
    arrays: dict[str, Array] = {}
    for layout, raw in zip(layouts, raws, strict=True):
        arrays[layout.name] = _array(layout, raw, text=text, align=align)
    return arrays


def _check_fit(layout: _Layout, raw: memoryview) -> None:
    """Refuse raw contents that are not those of datatype and shape."""
    name, datatype, shape, dtype, _, size = layout
    if dtype is None:
        _check_strings(layout, raw)
        return
    if len(raw) != size:
        detail = f"{size} for {datatype} of shape {list(shape)}"
        raise _invalid_input(name, f"{len(raw)} bytes, {detail}")
    if datatype == "BOOL" and size and np.frombuffer(raw, np.uint8).max() > 1:
        raise _invalid_input(name, "a BOOL byte is neither 0 nor 1")


def _check_strings(layout: _Layout, raw: memoryview) -> None:
    if not strings.fit(raw, layout.length):
        detail = f"raw contents are not {layout.length} strings with their lengths before them"
        raise _invalid_input(layout.name, detail)


def _array(layout: _Layout, raw: memoryview, *, text: bool, align: bool) -> Array:
    array: Array
    if layout.dtype is None:
        array = np.empty(layout.shape, np.object_)
        array.reshape(-1)[:] = _strings(layout.name, raw, text=text)
    elif align and len(raw) <= _SMALL:
        return np.ndarray(layout.shape, layout.dtype, bytes(raw))  # which lie aligned
    else:
        array = np.ndarray(layout.shape, layout.dtype, raw)
        if not align or array.flags.aligned:
            return array  # read-only, as `raw` is
        array = array.copy()
    array.flags.writeable = False
    return array


def _strings(name: str, raw: memoryview, *, text: bool) -> list[str] | list[bytes]:
    items = strings.unpack(raw)
    if not text:
        return items
    try:
        return [item.decode() for item in items]
    except UnicodeDecodeError:
        raise _invalid_input(name, "an element is not UTF-8") from None
