"""Open Inference Protocol messages taken apart strictly, without copying a tensor.

Only raw contents are supported: `contents`, repeated and unknown fields and every parameter but
`timeout` are refused, so that a message has one reading and nothing asked for is left undone
(SPEC 5.6.2). The number of tensors, and so the work, is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from casemate import limits, protowire
from casemate.errors import Code, RequestError
from casemate.oip import alike
from casemate.oip.v2 import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate.oip.alike import Table
    from casemate.wire import Buffer

T = TypeVar("T")

# Field numbers of casemate.oip.v2; those of a tensor are the same on the way in and out.
REQUEST_RAW: Final = 7
RESPONSE_RAW: Final = 6
_MODEL_NAME, _MODEL_VERSION, _ID, _PARAMETERS, _TENSORS, _REQUESTED = 1, 2, 3, 4, 5, 6
_KEY, _VALUE, _INT64, _UINT64 = 1, 2, 2, 5
_TIMEOUT: Final = "timeout"
_FIELDS_KNOWN: Final = 2 * limits.TENSORS_MAX + 4  # a tensor, its contents; id, name and so on
_TENSOR_NAME, _TENSOR_DATATYPE, _TENSOR_SHAPE, _TENSOR_CONTENTS = 1, 2, 3, 5


class Description(NamedTuple):
    """A tensor as a message describes it; nothing of it was checked against anything."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class Described:
    """What a message says beside its raw contents: its tensors, and the outputs asked for.

    ``id`` is the sender's own name for the request, ``timeout_us`` the time it allows.
    """

    tensors: list[Description]
    requested: list[str]
    id: str = ""
    timeout_us: int | None = None


def invalid_request(detail: str) -> RequestError:
    """Return the error of a message that is not as SPEC 5.6 wants it."""
    return RequestError(Code.INVALID_REQUEST, detail)


class MessageReader(Generic[T]):
    """Takes messages apart; thread-safe. What it made of a description it knows again by sight.

    Nearly all messages of a kind describe the same few tensors, and a description has no value of
    any. One that carries its sender's own name for the request is not kept.
    """

    def __init__(self, raw_number: int, make: Callable[[Described], T]) -> None:
        """``raw_number``: of REQUEST_RAW and RESPONSE_RAW; ``make`` may raise RequestError."""
        self._raw_number = raw_number
        self._make = make
        self._known: dict[bytes, T] = {}
        self._last: tuple[bytes, T] | None = None

    def read(self, message: memoryview) -> tuple[T, list[memoryview]]:
        """Return what was made of the description, and the raw contents as views.

        Raises RequestError (INVALID_REQUEST), and as ``make``.
        """
        message = message.toreadonly()
        return self._by_sight(message) or self._read(message)

    def read_alike(self, messages: Sequence[Buffer]) -> tuple[T, list[Table]] | None:
        """Return the same of several that differ in raw contents alone; else None.

        Of each tensor all raw contents, as rows of bytes. Raises as ``read``, for the first one.
        """
        first = memoryview(messages[0]).toreadonly()
        read = self._by_sight(first)
        if read is None:
            self._read(first)
            read = self._by_sight(first)  # unless its description is not kept
        tables = None if read is None else alike.stack(messages, read[1], self._raw_number)
        return None if read is None or tables is None else (read[0], tables)

    def _read(self, message: memoryview) -> tuple[T, list[memoryview]]:
        try:
            split = protowire.split_trailing(message, self._raw_number, _FIELDS_KNOWN)
            if split is None or len(split[0]) > limits.DESCRIPTION_KEPT_MAX:
                described, raws = _read(message, self._raw_number)
                return self._make(described), raws
            return self._made(bytes(split[0])), split[1]
        except (protowire.WireError, DecodeError):
            detail = "not a protobuf message of the Open Inference Protocol"
            raise invalid_request(detail) from None

    def _by_sight(self, message: memoryview) -> tuple[T, list[memoryview]] | None:
        """Read a message that begins as the last one, if nothing but raw contents follows."""
        if self._last is None:
            return None
        prefix, made = self._last
        at, size = len(prefix), len(message)
        if bytes(message[:at]) != prefix:  # views would be compared item by item
            return None
        raws: list[memoryview] = []
        try:
            while at < size and len(raws) < limits.TENSORS_MAX:
                raw, at = protowire.bytes_field(message, at, self._raw_number)
                raws.append(raw)
        except protowire.WireError:
            return None
        return (made, raws) if at == size else None

    def _made(self, prefix: bytes) -> T:
        made = self._known.get(prefix)
        if made is not None:
            self._last = prefix, made
            return made
        described, _ = _read(memoryview(prefix), self._raw_number)
        made = self._make(described)
        if not described.id:
            if len(self._known) >= limits.DESCRIPTIONS_KEPT:
                self._known.clear()
            self._known[prefix] = made
            self._last = prefix, made
        return made


def _read(message: memoryview, raw_number: int) -> tuple[Described, list[memoryview]]:
    described = Described([], [])
    raws: list[memoryview] = []
    single: set[int] = set()
    for number, kind, content in protowire.read_fields(message):
        if kind != protowire.BYTES or number in single:
            raise invalid_request("a field of the message is repeated or has a wrong type")
        if number == raw_number:
            raws.append(content)
        elif number == _TENSORS:
            described.tensors.append(_read_tensor(content))
        elif number == _REQUESTED:
            described.requested.append(_read_requested(content))
        else:
            single.add(number)
            _read_single(described, number, content, raw_number)
        if max(len(raws), len(described.tensors), len(described.requested)) > limits.TENSORS_MAX:
            raise invalid_request(f"more than {limits.TENSORS_MAX} tensors")
    return described, raws


def _read_single(parsed: Described, number: int, content: memoryview, raw_number: int) -> None:
    """Read a field that may occur once; of the parameters one alone is understood."""
    if number == _ID:
        parsed.id = _read_id(content)
    elif number == _PARAMETERS and raw_number == REQUEST_RAW:
        parsed.timeout_us = _read_timeout(content)
    elif number not in (_MODEL_NAME, _MODEL_VERSION):
        raise invalid_request(f"field {number} of the message is unknown or not supported")


def _read_tensor(content: memoryview) -> Description:
    seen: set[int] = set()
    for number, _, _ in protowire.read_fields(content):
        if number == _TENSOR_CONTENTS:
            raise invalid_request("a tensor uses `contents`; send raw contents")
        if number not in (_TENSOR_NAME, _TENSOR_DATATYPE, _TENSOR_SHAPE):
            raise invalid_request(f"field {number} of a tensor is unknown or not supported")
        if number in seen and number != _TENSOR_SHAPE:
            raise invalid_request("a field of a tensor is repeated")
        seen.add(number)
        if len(content) > limits.TENSOR_DESCRIPTION_MAX:
            raise invalid_request("the description of a tensor is too long")
    tensor = pb.ModelInferRequest.InferInputTensor.FromString(bytes(content))
    if not 1 <= len(tensor.name.encode()) <= limits.NAME_MAX:
        raise invalid_request(f"the name of a tensor does not have 1 to {limits.NAME_MAX} bytes")
    return Description(tensor.name, tensor.datatype, tuple(tensor.shape))


def _read_id(content: memoryview) -> str:
    try:
        text = bytes(content).decode()
    except UnicodeDecodeError:
        raise invalid_request("the id is not UTF-8") from None
    if len(content) > limits.NAME_MAX:
        raise invalid_request(f"the id has more than {limits.NAME_MAX} bytes")
    return text


def _read_timeout(entry: memoryview) -> int:
    """Read the parameter `timeout`, a whole number of microseconds; refuse any other one."""
    fields = list(protowire.read_fields(entry))
    named = [(number, kind) for number, kind, _ in fields] == [(_KEY, 2), (_VALUE, 2)]
    if not named or bytes(fields[0][2]) != _TIMEOUT.encode():
        raise invalid_request("a parameter that is not understood; there is `timeout` alone")
    values = list(protowire.read_fields(fields[1][2]))
    if len(values) != 1 or values[0][0] not in (_INT64, _UINT64):
        raise invalid_request("`timeout` is not a whole number of microseconds")
    parameter = pb.InferParameter.FromString(bytes(fields[1][2]))
    microseconds = parameter.int64_param or parameter.uint64_param
    if microseconds < 1:
        raise invalid_request("`timeout` is not positive")
    return microseconds


def _read_requested(content: memoryview) -> str:
    if len(content) > limits.TENSOR_DESCRIPTION_MAX:
        raise invalid_request("a requested output is too long")
    if [number for number, _, _ in protowire.read_fields(content)] != [_TENSOR_NAME]:
        raise invalid_request("a requested output has a name and nothing else")
    return pb.ModelInferRequest.InferRequestedOutputTensor.FromString(bytes(content)).name
