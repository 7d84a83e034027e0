"""Open Inference Protocol v2 tensors and numpy arrays; the only place where one becomes the other.

Requests are read strictly and completely before an array is made: a refusal has cost no memory.
Errors name tensors, datatypes and shapes, never values.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from casemate import limits, protowire
from casemate.oip import strings
from casemate.oip.layouts import (
    BFLOAT16,
    BYTES,
    DATATYPES,
    NAMES,
    NUMERIC,
    SMALL,
    invalid_input,
    layouts_of,
    read_arrays,
    stacked_arrays,
)
from casemate.oip.messages import (
    REQUEST_RAW,
    RESPONSE_RAW,
    Described,
    MessageReader,
    invalid_request,
)
from casemate.oip.v2 import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from casemate.oip.layouts import Layout
    from casemate.wire import Buffer

    Array = npt.NDArray[Any]
    _Tensor = tuple[str, str, tuple[int, ...]]  # as in ``Description``

__all__ = [
    "BFLOAT16",
    "BYTES",
    "DATATYPES",
    "NUMERIC",
    "InferRequest",
    "RequestReader",
    "TensorSpec",
    "from_response",
    "from_responses",
    "read_request",
    "request_lead",
    "request_pieces",
    "response_lead",
    "response_pieces",
    "response_shares",
    "to_request",
    "to_response",
]


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


class _Asked(NamedTuple):
    """What a request says beside its contents, found to fit the model."""

    layouts: list[Layout]
    requested: tuple[str, ...]
    id: str
    timeout_us: int | None


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


def response_shares(
    outputs: Mapping[str, Array],
    among: tuple[int, int],
    model: str,
    version: int,
    request_id: str = "",
) -> list[list[Buffer]] | None:
    """Return responses as ``response_pieces``, each with its share of every output.

    ``among``: how many rows, along the first axis, are shared among how many. None unless every
    output has so many, and no strings.
    """
    rows, count = among
    tensors: list[_Tensor] = []
    shares: list[list[Buffer]] = [[b""] for _ in range(count)]
    for name, array in outputs.items():
        datatype = NAMES.get(array.dtype)
        if datatype is None or array.shape[:1] != (rows,):
            return None
        tensors.append((name, datatype, (rows // count, *array.shape[1:])))
        raw, size = _view(array), array.nbytes // count
        head = protowire.bytes_head(RESPONSE_RAW, size)
        for place, share in enumerate(shares):
            share.extend((head, raw[place * size : (place + 1) * size]))
    describe = _described_response.__wrapped__ if request_id else _described_response
    described = describe(tuple(tensors), model, version, request_id)
    for share in shares:
        share[0] = described
    return shares


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
        array, datatype = given, NAMES.get(given.dtype)
        if datatype is None:
            array, datatype = _converted(name, given)
        size = array.nbytes
        raw: Buffer = array.tobytes() if size <= SMALL else _view(array)
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
            raise invalid_input(name, "an element is neither text nor bytes") from None
    if array.dtype.name == "bfloat16":
        return array.view(BFLOAT16), NAMES[BFLOAT16]
    dtype = array.dtype.newbyteorder("<")
    datatype = NAMES.get(dtype)
    if datatype is None:
        raise invalid_input(name, f"dtype {array.dtype} is not one of the protocol's")
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
        arrays = read_arrays(asked.layouts, raws, text=True, align=False)
        return InferRequest(arrays, asked.requested, asked.id, asked.timeout_us)

    def read_alike(self, messages: Sequence[Buffer]) -> InferRequest | None:
        """Return what several ask that differ in numbers alone, each input with an axis for them.

        That is its first axis. None for others; raises as ``read``, for the first one.
        """
        read = self._messages.read_alike(messages)
        arrays = None if read is None else stacked_arrays(read[0].layouts, read[1])
        if read is None or arrays is None:
            return None
        return InferRequest(arrays, read[0].requested, read[0].id, read[0].timeout_us)

    def _asked(self, described: Described) -> _Asked:
        _check_names([tensor.name for tensor in described.tensors], self._inputs)
        layouts = layouts_of(described.tensors)
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
    return read_arrays(layouts, raws, text=False, align=True)


def from_responses(messages: Sequence[Buffer]) -> list[dict[str, Array]] | None:
    """Return ``from_response`` of several that differ in numbers alone; None for others."""
    read = _RESPONSES.read_alike(messages)
    arrays = None if read is None else stacked_arrays(*read)
    if arrays is None:
        return None
    return [dict(zip(arrays, each, strict=True)) for each in zip(*arrays.values(), strict=True)]


def _answered(described: Described) -> list[Layout]:
    layouts = layouts_of(described.tensors)
    if len({layout.name for layout in layouts}) != len(layouts):
        raise invalid_request("an output is named twice")
    return layouts


_RESPONSES: Final = MessageReader(RESPONSE_RAW, _answered)


def _check_names(names: list[str], specs: Mapping[str, TensorSpec]) -> None:
    for name in names:
        if name not in specs:
            raise invalid_input(name, f"no such input; the model has {', '.join(specs)[:200]}")
        if names.count(name) > 1:
            raise invalid_input(name, "given more than once")
    for name in specs:
        if name not in names:
            raise invalid_input(name, "missing")


def _check_requested(requested: list[str], known: list[str]) -> list[str]:
    for name in requested:
        if name not in known:
            raise invalid_input(name, f"no such output; the model has {', '.join(known)[:200]}")
        if requested.count(name) > 1:
            raise invalid_input(name, "requested more than once")
    return requested or known


def _check_spec(tensor: Layout, spec: TensorSpec) -> None:
    if tensor.datatype != spec.datatype:
        raise invalid_input(
            tensor.name, f"datatype {tensor.datatype}, the model takes {spec.datatype}"
        )
    fits = len(tensor.shape) == len(spec.shape) and all(
        want in (0, got) for got, want in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        takes = ", ".join("any" if want == 0 else str(want) for want in spec.shape)
        raise invalid_input(tensor.name, f"shape {list(tensor.shape)}, the model takes [{takes}]")
