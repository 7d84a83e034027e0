"""A model without its weights, which onnxruntime then takes from where they lie.

Given as bytes, each weight is copied four times before it is used: into the bytes, by the binding,
by the parser, and into a tensor. As external data it is copied once. So the model is written anew
with references to itself in place of its large tensors; all else stays byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate_enclave.onnx_scan import fields, message_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.wire import Buffer

ITSELF: Final = "@model"  # the location that stands for the model; no entry can have this path
# onnx.proto: fields of ModelProto and GraphProto on the way, and of TensorProto.
_GRAPH, _INITIALIZER = 7, 5
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_PLAIN: Final = frozenset({1, 2, 8, 12, _RAW_DATA})  # dims, data type, name, doc string
_KEY, _VALUE = 1, 2
_EXTERNAL = 1
_VARINT, _BYTES = 0, 2
_MORE, _SEVEN = 0x80, 7


def outline(model: memoryview) -> bytes:
    """Return ``model`` with its large weights as external data of the file ``ITSELF``.

    Raises ModelError(MODEL_REJECTED) for what is no message.
    """

    def without(graph: memoryview, at: int) -> list[Buffer]:
        return list(_replacing(_INITIALIZER, graph, at, _reference))

    return b"".join(_replacing(_GRAPH, model, 0, without))


def _replacing(
    number: int,
    message: memoryview,
    at: int,
    replace: Callable[[memoryview, int], list[Buffer] | None],
) -> Iterator[Buffer]:
    """Yield ``message``, which lies ``at``, with what ``replace`` makes of its field ``number``."""
    done = 0
    for found, value, begin, end in fields(message):
        if found != number:
            continue
        inner = message_in(value)
        new = replace(inner, at + end - len(inner))
        if new is not None:
            yield message[done:begin]
            yield from _field(number, *new)
            done = end
    yield message[done:]


def _reference(tensor: memoryview, at: int) -> list[Buffer] | None:
    """Return ``tensor`` with a reference to its data; None if it is small, or of another kind."""
    raw = None
    for number, value, begin, end in fields(tensor):
        if number not in _PLAIN or (number == _RAW_DATA and raw is not None):
            return None
        if number == _RAW_DATA:
            size = len(message_in(value))
            raw = begin, end, size
    if raw is None or raw[2] < limits.ONNX_WEIGHT_APART:
        return None
    begin, end, size = raw
    where = {"location": ITSELF, "offset": str(at + end - size), "length": str(size)}
    entries = [piece for pair in where.items() for piece in _entry(*pair)]
    location = [_varint(_DATA_LOCATION << 3 | _VARINT), _varint(_EXTERNAL)]
    return [tensor[:begin], tensor[end:], *entries, *location]


def _entry(key: str, value: str) -> list[Buffer]:
    pair = [*_field(_KEY, key.encode()), *_field(_VALUE, value.encode())]
    return _field(_EXTERNAL_DATA, *pair)


def _field(number: int, *pieces: Buffer) -> list[Buffer]:
    return [_varint(number << 3 | _BYTES), _varint(sum(map(len, pieces))), *pieces]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= _MORE:
        out.append(value & (_MORE - 1) | _MORE)
        value >>= _SEVEN
    return bytes([*out, value])
