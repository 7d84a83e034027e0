"""The fields of a protobuf message in a file, for ONNX models: nothing is read that is skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from casemate.errors import Code, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

# onnx.proto: ModelProto, GraphProto
GRAPH: Final = 7
INITIALIZER: Final = 5
_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_WIRES: Final = frozenset({_VARINT, _FIXED64, _BYTES, _FIXED32})
_NUMBER_MAX: Final = (1 << 29) - 1
_VARINT_BITS: Final = 64


class Field(NamedTuple):
    """A message, text or bytes: what is before its content begins at ``head``."""

    number: int
    head: int
    start: int
    end: int


def fields(model: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """Yield the messages, texts and bytes of the message that lies there, skipping others.

    Raises ModelError(MODEL_MALFORMED) for what is none.
    """
    at = start
    while at < end:
        head = at
        model.seek(at)
        tag, at = _varint(model, at)
        wire = tag & 7
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
        if wire in {_VARINT, _BYTES}:
            value, at = _varint(model, at)
            length = value if wire == _BYTES else 0
        if length > end - at or wire not in _WIRES or not 0 < tag >> 3 <= _NUMBER_MAX:
            raise not_onnx()
        if wire == _BYTES:
            yield Field(tag >> 3, head, at, at + length)
        at += length
    if at > end:
        raise not_onnx()


def _varint(model: BinaryIO, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _VARINT_BITS, 7):
        byte = model.read(1)
        if not byte:
            break
        at += 1
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, at
    raise not_onnx()


def not_onnx() -> ModelError:
    """Return the error of a file that is no ONNX model."""
    return ModelError(Code.MODEL_MALFORMED, "not an ONNX model")
