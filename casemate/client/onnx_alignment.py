"""ONNX models whose weights lie aligned, so that no load has to copy them (SPEC 8.4, 8.10.2).

onnxruntime uses weights where they lie if they lie aligned there; those within a model's file lie
anywhere. So a large one gets a documentation string of blanks before its other fields, which
changes nothing that the model says: of several such strings the last one counts.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from casemate import limits
from casemate.client.onnx_fields import GRAPH, INITIALIZER, fields
from casemate.protowire import bytes_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casemate.client.onnx_fields import Field

_ALIGNMENT: Final = 64  # that of each content in memory (SPEC 8.10.2)
_RAW_DATA, _DOC_STRING = 9, 12  # onnx.proto, TensorProto


class _Edit(NamedTuple):
    """What stands in place of a file's bytes from ``start`` to ``end``."""

    start: int
    end: int
    put: bytes

    @property
    def growth(self) -> int:
        return len(self.put) - (self.end - self.start)


@contextmanager
def aligned(model: Path, folder: Path) -> Iterator[Path]:
    """Yield ``model``, or if its large weights lie unaligned a copy in which they do not.

    The copy lies in ``folder`` and goes away afterwards. Memory does not grow with the model.
    Raises ModelError(MODEL_MALFORMED) for what is no ONNX model; OSError passes through.
    """
    with model.open("rb") as file:
        edits = _edits(file)
        if not edits:
            yield model
            return
        with TemporaryDirectory(prefix="casemate-", dir=folder) as place:
            copy = Path(place) / model.name
            with copy.open("xb") as output:
                _write(file, edits, output)
            yield copy


def _edits(model: BinaryIO) -> list[_Edit]:
    edits: list[_Edit] = []
    for field in fields(model, 0, model.seek(0, os.SEEK_END)):
        if field.number == GRAPH:
            edits += _in_graph(model, field, sum(edit.growth for edit in edits))
    return edits


def _in_graph(model: BinaryIO, graph: Field, shift: int) -> list[_Edit]:
    """Return the edits within ``graph``, which lies ``shift`` bytes further on in the copy."""
    # Its length stands before what decides about its length, and may take a byte more.
    for head_size in range(graph.start - graph.head, graph.start - graph.head + 2):
        edits = _of_weights(model, graph, shift + head_size - (graph.start - graph.head))
        length = graph.end - graph.start + sum(edit.growth for edit in edits)
        head = bytes_head(GRAPH, length)
        if not edits:
            break
        if len(head) == head_size:
            return [_Edit(graph.head, graph.start, head), *edits]
    return []


def _of_weights(model: BinaryIO, graph: Field, shift: int) -> list[_Edit]:
    edits = []
    for tensor in fields(model, graph.start, graph.end):
        if tensor.number == INITIALIZER and (edit := _of_weight(model, tensor, shift)) is not None:
            edits.append(edit)
            shift += edit.growth
    return edits


def _of_weight(model: BinaryIO, tensor: Field, shift: int) -> _Edit | None:
    data = [field for field in fields(model, tensor.start, tensor.end) if field.number == _RAW_DATA]
    if len(data) != 1 or data[0].end - data[0].start < limits.ONNX_WEIGHT_APART:
        return None
    if (data[0].start + shift) % _ALIGNMENT == 0:
        return None
    for count in range(_ALIGNMENT + 1):
        blanks = bytes_head(_DOC_STRING, count) + b" " * count
        head = bytes_head(INITIALIZER, tensor.end - tensor.start + len(blanks))
        edit = _Edit(tensor.head, tensor.start, head + blanks)
        if (data[0].start + shift + edit.growth) % _ALIGNMENT == 0:
            return edit
    return None  # its length took a byte more just where it would have been aligned


def _write(model: BinaryIO, edits: Sequence[_Edit], output: BinaryIO) -> None:
    done = 0
    for edit in edits:
        _copy(model, done, edit.start, output)
        output.write(edit.put)
        done = edit.end
    _copy(model, done, model.seek(0, os.SEEK_END), output)


def _copy(model: BinaryIO, start: int, end: int, output: BinaryIO) -> None:
    model.seek(start)
    left = end - start
    while left and (piece := model.read(min(left, limits.CHUNK))):
        output.write(piece)
        left -= len(piece)
