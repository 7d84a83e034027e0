"""Which files an ONNX model wants to read, found before onnxruntime sees it (THREATS M3).

A walk over the protobuf wire format along the few fields of onnx.proto that lead to a tensor.
Everything else is skipped, and what cannot be walked is refused. ``casemate.protowire`` does not
serve: it refuses fixed-width fields and long varints, which ONNX files have.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from casemate import limits
from casemate_enclave.refusals import Refusal, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_MAX = 10


class _Kind(Enum):
    MODEL = auto()
    GRAPH = auto()
    NODE = auto()
    ATTRIBUTE = auto()
    TENSOR = auto()
    SPARSE = auto()
    FUNCTION = auto()
    TRAINING = auto()


# onnx.proto: field number to the message it holds, where a tensor can be below it.
_CHILDREN: dict[_Kind, dict[int, _Kind]] = {
    _Kind.MODEL: {7: _Kind.GRAPH, 20: _Kind.TRAINING, 25: _Kind.FUNCTION},
    _Kind.GRAPH: {1: _Kind.NODE, 5: _Kind.TENSOR, 15: _Kind.SPARSE},
    _Kind.NODE: {5: _Kind.ATTRIBUTE},
    _Kind.ATTRIBUTE: {
        5: _Kind.TENSOR,
        6: _Kind.GRAPH,
        10: _Kind.TENSOR,
        11: _Kind.GRAPH,
        22: _Kind.SPARSE,
        23: _Kind.SPARSE,
    },
    _Kind.TENSOR: {},
    _Kind.SPARSE: {1: _Kind.TENSOR, 2: _Kind.TENSOR},
    _Kind.FUNCTION: {7: _Kind.NODE, 11: _Kind.ATTRIBUTE},
    _Kind.TRAINING: {1: _Kind.GRAPH, 2: _Kind.GRAPH},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


def external_locations(model: bytes | memoryview) -> set[str]:
    """Name every file that tensors of ``model`` refer to; raises ModelError(MODEL_REJECTED)."""
    found: set[str] = set()
    with memoryview(model) as view:
        _walk(view, _Kind.MODEL, 0, found)
    return found


def _walk(message: memoryview, kind: _Kind, depth: int, found: set[str]) -> None:
    if depth > limits.ONNX_DEPTH:
        raise RefusedError(Refusal.DEPTH)
    children = _CHILDREN[kind]
    entries: list[memoryview] = []
    outside = False
    for number, value, _, _ in fields(message):
        if number in children:
            _walk(message_in(value), children[number], depth + 1, found)
        elif kind is _Kind.TENSOR and number == _TENSOR_EXTERNAL_DATA:
            entries.append(message_in(value))
        elif kind is _Kind.TENSOR and number == _TENSOR_DATA_LOCATION:
            outside |= value != 0
    if outside or entries:
        found.add(_location(entries))


def _location(entries: list[memoryview]) -> str:
    locations = []
    for entry in entries:
        pair = [(number, _text(value)) for number, value, _, _ in fields(entry)]
        if (_ENTRY_KEY, "location") in pair:
            locations += [text for number, text in pair if number == _ENTRY_VALUE]
    # Two readers of the format may disagree on which of several counts.
    if len(locations) != 1:
        raise RefusedError(Refusal.EXTERNAL)
    return locations[0]


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview, int, int]]:
    """Yield each field's number, its value, and where in ``message`` it begins and ends.

    Fixed-width values are shown as their bytes. Raises ModelError(MODEL_REJECTED).
    """
    at = 0
    while at < len(message):
        begin = at
        tag, at = _varint(message, at)
        if tag >> 32:  # protobuf drops the higher bits and so would see another field
            raise RefusedError(Refusal.FIELD)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value, begin, at
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in {_FIXED32, _FIXED64}:
            size = 4 if wire == _FIXED32 else 8
        else:
            raise RefusedError(Refusal.WIRE)
        if size > len(message) - at:
            raise RefusedError(Refusal.END)
        at += size
        yield number, message[at - size : at], begin, at


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + _VARINT_MAX]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, at + index + 1
    raise RefusedError(Refusal.INTEGER)


def message_in(value: int | memoryview) -> memoryview:
    """Return a field's value as the message it has to be; raises ModelError(MODEL_REJECTED)."""
    if isinstance(value, int):
        raise RefusedError(Refusal.MESSAGE)
    return value


def _text(value: int | memoryview) -> str:
    try:
        return bytes(message_in(value)).decode()
    except UnicodeDecodeError:
        raise RefusedError(Refusal.TEXT) from None
