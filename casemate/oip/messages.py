"""Open Inference Protocol messages taken apart strictly, without copying a tensor.

Only raw contents are supported: `contents`, parameters, repeated and unknown fields are refused,
so that a message has one reading. The number of tensors, and so the work, is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from casemate import limits, protowire
from casemate.errors import Code, RequestError
from casemate.oip.v2 import inference_pb2 as pb

# Field numbers of casemate.oip.v2; those of a tensor are the same on the way in and out.
REQUEST_RAW: Final = 7
RESPONSE_RAW: Final = 6
_MODEL_NAME, _MODEL_VERSION, _ID, _TENSORS, _REQUESTED = 1, 2, 3, 5, 6
_TENSOR_NAME, _TENSOR_DATATYPE, _TENSOR_SHAPE, _TENSOR_CONTENTS = 1, 2, 3, 5


@dataclass(frozen=True, slots=True)
class Message:
    """The tensors of a message as described, their raw contents, and the outputs asked for."""

    tensors: list[pb.ModelInferRequest.InferInputTensor]
    raws: list[memoryview]
    requested: list[str]


def invalid_request(detail: str) -> RequestError:
    """Return the error of a message that is not as SPEC 5.6 wants it."""
    return RequestError(Code.INVALID_REQUEST, detail)


def read_request_message(message: memoryview) -> Message:
    """Take a ``ModelInferRequest`` apart; raises RequestError (INVALID_REQUEST)."""
    return _read(message, REQUEST_RAW)


def read_response_message(message: memoryview) -> Message:
    """Take a ``ModelInferResponse`` apart; raises RequestError (INVALID_REQUEST)."""
    return _read(message, RESPONSE_RAW)


def _read(message: memoryview, raw_number: int) -> Message:
    parsed = Message([], [], [])
    single: set[int] = set()
    try:
        for number, kind, content in protowire.read_fields(message.toreadonly()):
            if kind != protowire.BYTES or number in single:
                raise invalid_request("a field of the message is repeated or has a wrong type")
            if number == raw_number:
                parsed.raws.append(content)
            elif number == _TENSORS:
                parsed.tensors.append(_read_tensor(content))
            elif number == _REQUESTED:
                parsed.requested.append(_read_requested(content))
            elif number in (_MODEL_NAME, _MODEL_VERSION, _ID):
                single.add(number)
            else:
                raise invalid_request(f"field {number} of the message is unknown or not supported")
            if (
                max(len(parsed.tensors), len(parsed.raws), len(parsed.requested))
                > limits.TENSORS_MAX
            ):
                raise invalid_request(f"more than {limits.TENSORS_MAX} tensors")
    except (protowire.WireError, DecodeError):
        raise invalid_request("not a protobuf message of the Open Inference Protocol") from None
    return parsed


def _read_tensor(content: memoryview) -> pb.ModelInferRequest.InferInputTensor:
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
    return tensor


def _read_requested(content: memoryview) -> str:
    if len(content) > limits.TENSOR_DESCRIPTION_MAX:
        raise invalid_request("a requested output is too long")
    if [number for number, _, _ in protowire.read_fields(content)] != [_TENSOR_NAME]:
        raise invalid_request("a requested output has a name and nothing else")
    return pb.ModelInferRequest.InferRequestedOutputTensor.FromString(bytes(content)).name
