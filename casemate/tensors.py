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
    Description,
    Message,
    invalid_request,
    read_request_message,
    read_response_message,
)
from casemate.oip.v2 import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from casemate.wire import Buffer

    Array = npt.NDArray[Any]

BYTES: Final = "BYTES"
# numpy has no bfloat16: here it is a type of its own, around the 16 bits (SPEC 5.6.2).
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
    outputs: list[str]
    id: str
    timeout_us: int | None


class _Tensor(NamedTuple):
    """A tensor of a message whose raw contents are known to fit its datatype and shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: memoryview


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
    """Return what ``to_request`` does in pieces, tensors as views of ``inputs``."""
    contents = [_content(name, array) for name, array in inputs.items()]
    described = _described_request(tuple([described for described, _ in contents]), tuple(outputs))
    return _pieces(described, REQUEST_RAW, [raw for _, raw in contents])


def to_response(
    outputs: Mapping[str, Array], model: str, version: int, request_id: str = ""
) -> bytes:
    """Return a ``ModelInferResponse`` of ``outputs``; raises as ``to_request``."""
    return b"".join(response_pieces(outputs, model, version, request_id))


def response_pieces(
    outputs: Mapping[str, Array], model: str, version: int, request_id: str = ""
) -> list[Buffer]:
    """Return what ``to_response`` does in pieces, tensors as views of ``outputs``."""
    contents = [_content(name, array) for name, array in outputs.items()]
    tensors = tuple([described for described, _ in contents])
    describe = _described_response.__wrapped__ if request_id else _described_response
    described = describe(tensors, model, version, request_id)
    return _pieces(described, RESPONSE_RAW, [raw for _, raw in contents])


# Nearly all messages describe the same few tensors, and a description has no value of any.


@functools.lru_cache(maxsize=limits.DESCRIPTIONS_KEPT)
def _described_request(tensors: tuple[Description, ...], outputs: tuple[str, ...]) -> bytes:
    message = pb.ModelInferRequest()
    for name, datatype, shape in tensors:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    for name in outputs:
        message.outputs.add(name=name)
    return message.SerializeToString()


@functools.lru_cache(maxsize=limits.DESCRIPTIONS_KEPT)
def _described_response(
    tensors: tuple[Description, ...], model: str, version: int, request_id: str
) -> bytes:
    message = pb.ModelInferResponse(model_name=model, model_version=str(version), id=request_id)
    for name, datatype, shape in tensors:
        message.outputs.add(name=name, datatype=datatype, shape=shape)
    return message.SerializeToString()


def _pieces(described: bytes, number: int, raws: Iterable[Buffer]) -> list[Buffer]:
    # Raw contents have the highest field number: appended, each tensor is copied once, not thrice.
    pieces: list[Buffer] = [described]
    for raw in raws:
        pieces += (protowire.bytes_head(number, len(raw)), raw)
    return pieces


def request_lead(head: memoryview) -> int:
    """Return where in the beginning of a ``ModelInferRequest`` its first long tensor lies, or 0.

    A reader that lays the message out so that this place is aligned need not copy the tensor.
    """
    return protowire.locate(head, REQUEST_RAW, limits.STREAM_LONG)


def response_lead(head: memoryview) -> int:
    """Return the same of a ``ModelInferResponse``."""
    return protowire.locate(head, RESPONSE_RAW, limits.STREAM_LONG)


def _content(name: str, array: Array) -> tuple[Description, Buffer]:
    """Return how a message describes ``array``, and its raw contents, a view where it can be."""
    if array.dtype.kind in "OSU":
        try:
            packed = strings.pack(array.reshape(-1).tolist())
        except TypeError:
            raise _invalid_input(name, "an element is neither text nor bytes") from None
        return Description(name, BYTES, array.shape), packed
    datatype = _NAMES.get(array.dtype)
    if datatype is None:
        array, datatype = _converted(name, array)
    if not array.size:
        return Description(name, datatype, array.shape), b""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return Description(name, datatype, array.shape), flat.data


def _converted(name: str, array: Array) -> tuple[Array, str]:
    """Return ``array`` as the protocol has it, little-endian; raises RequestError."""
    if array.dtype.name == "bfloat16":
        return array.view(BFLOAT16), _NAMES[BFLOAT16]
    dtype = array.dtype.newbyteorder("<")
    datatype = _NAMES.get(dtype)
    if datatype is None:
        raise _invalid_input(name, f"dtype {array.dtype} is not one of the protocol's")
    return array.astype(dtype), datatype


# Reading


def read_request(
    message: Buffer, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """Return the arrays of a ``ModelInferRequest`` and what it asks for.

    Every input of the model is there, with its datatype and a shape that it allows. Arrays are
    read-only, and views of ``message`` where its alignment permits; strings are ``str``. No
    requested output means all of ``outputs``. Raises RequestError: INVALID_REQUEST for the
    message, INVALID_INPUT for what it says about tensors.
    """
    parsed = read_request_message(memoryview(message))
    specs = {spec.name: spec for spec in inputs}
    _check_names([tensor.name for tensor in parsed.tensors], specs)
    tensors = _fitting(parsed)
    for tensor in tensors:
        _check_spec(tensor, specs[tensor.name])
    requested = _check_requested(parsed.requested, [spec.name for spec in outputs])
    arrays = {tensor.name: _array(tensor, text=True) for tensor in tensors}
    return InferRequest(arrays, requested, parsed.id, parsed.timeout_us)


def from_response(message: Buffer) -> dict[str, Array]:
    """Return the arrays of a ``ModelInferResponse``, read-only; strings are ``bytes``.

    BF16 comes as ``BFLOAT16``, which ``view(ml_dtypes.bfloat16)`` turns into numbers.

    Raises RequestError as ``read_request``.
    """
    tensors = _fitting(read_response_message(memoryview(message)))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise invalid_request("an output is named twice")
    return {tensor.name: _array(tensor, text=False) for tensor in tensors}


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


def _check_spec(tensor: _Tensor, spec: TensorSpec) -> None:
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


def _fitting(parsed: Message) -> list[_Tensor]:
    """Pair tensors with their raw contents; every length is that of datatype and shape."""
    if len(parsed.tensors) != len(parsed.raws):
        raise invalid_request(f"{len(parsed.tensors)} tensors and {len(parsed.raws)} raw contents")
    tensors = []
    texts = 0
    for described, raw in zip(parsed.tensors, parsed.raws, strict=True):
        tensor = _Tensor(*described, raw)
        texts += _check_fit(tensor)
        tensors.append(tensor)
        if texts > limits.STRINGS_MAX:
            raise _invalid_input(
                tensor.name, f"more than {limits.STRINGS_MAX} strings in one message"
            )
    return tensors


def _check_fit(tensor: _Tensor) -> int:
    """Refuse raw contents that are not those of datatype and shape; return the strings in them."""
    if len(tensor.shape) > limits.RANK_MAX:
        raise _invalid_input(tensor.name, f"rank {len(tensor.shape)}, limit {limits.RANK_MAX}")
    # Counting an empty dimension as one keeps an empty tensor from naming absurd lengths.
    if min(tensor.shape, default=0) < 0 or (
        math.prod(length or 1 for length in tensor.shape) > limits.ELEMENTS_MAX
    ):
        raise _invalid_input(tensor.name, f"shape {list(tensor.shape)} is out of bounds")
    count = math.prod(tensor.shape)
    if tensor.datatype == BYTES:
        _check_strings(tensor, count)
        return count
    dtype = NUMERIC.get(tensor.datatype)
    if dtype is None:
        raise _invalid_input(tensor.name, f"unknown datatype {tensor.datatype[:16]!r}")
    if len(tensor.raw) != count * dtype.itemsize:
        raise _invalid_input(
            tensor.name,
            f"{len(tensor.raw)} bytes, {count * dtype.itemsize} for {tensor.datatype} "
            f"of shape {list(tensor.shape)}",
        )
    if dtype.kind == "b" and count and np.frombuffer(tensor.raw, np.uint8).max() > 1:
        raise _invalid_input(tensor.name, "a BOOL byte is neither 0 nor 1")
    return 0


def _check_strings(tensor: _Tensor, count: int) -> None:
    if count > limits.STRINGS_MAX:
        raise _invalid_input(tensor.name, f"{count} strings, limit {limits.STRINGS_MAX}")
    if not strings.fit(tensor.raw, count):
        raise _invalid_input(
            tensor.name, f"raw contents are not {count} strings with their lengths before them"
        )


def _array(tensor: _Tensor, *, text: bool) -> Array:
    if tensor.datatype == BYTES:
        array: Array = np.empty(tensor.shape, np.object_)
        array.reshape(-1)[:] = _strings(tensor, text=text)
    else:
        dtype = NUMERIC[tensor.datatype]
        array = (np.frombuffer(tensor.raw, dtype) if tensor.raw else np.empty(0, dtype)).reshape(
            tensor.shape
        )
        if not array.flags.aligned:
            array = array.copy()
    array.flags.writeable = False
    return array


def _strings(tensor: _Tensor, *, text: bool) -> list[str] | list[bytes]:
    items = strings.unpack(tensor.raw)
    if not text:
        return items
    try:
        return [item.decode() for item in items]
    except UnicodeDecodeError:
        raise _invalid_input(tensor.name, "an element is not UTF-8") from None
