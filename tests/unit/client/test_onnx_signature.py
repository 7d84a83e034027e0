"""Inputs and outputs of an ONNX file, read without its weights."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from casemate.client.onnx_signature import read_signature
from casemate.errors import Code, ModelError
from casemate.onnx.signature_pb2 import Model
from casemate.tensors import TensorSpec
from tests.support import onnx_bytes
from tests.support.onnx_bytes import field, tensor, value_info

WDBC = (Path(__file__).resolve().parents[3] / "examples/wdbc/wdbc.onnx").read_bytes()
FLOAT = 1


class Counted(io.BytesIO):
    """Counts the bytes that are read."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def read(model: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    return read_signature(io.BytesIO(model))


def graph(*fields: bytes) -> bytes:
    return field(7, b"".join(fields))


def test_the_examples_signature() -> None:
    inputs, outputs = read(WDBC)
    assert inputs == (TensorSpec("features", "FP32", (0, 30)),)
    assert [output.name for output in outputs] == ["label", "probabilities"]


def test_weights_are_not_read() -> None:
    model = Counted(onnx_bytes.linear() + field(99, bytes(1 << 20)))
    large = graph(
        field(5, tensor("w", FLOAT, (1 << 18,), bytes(1 << 20))),
        field(11, value_info("x", FLOAT, (2,))),
        field(11, value_info("w", FLOAT, (1 << 18,))),
        field(12, value_info("y", FLOAT, (2,))),
        field(1, bytes(1 << 20)),
    )
    read_signature(model)
    assert model.taken < 1000
    counted = Counted(large)
    inputs, _ = read_signature(counted)
    assert inputs == (TensorSpec("x", "FP32", (2,)),)  # an initialiser is no input
    assert counted.taken < 1000


def test_a_graph_in_two_parts_is_one() -> None:
    parts = graph(field(11, value_info("x", FLOAT, (2,)))) + field(2, b"producer")
    parts += graph(field(12, value_info("y", FLOAT, (2,))))
    assert read(parts) == ((TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),))


BROKEN = {
    "empty": b"",
    "no graph": field(2, b"producer"),
    "no outputs": graph(field(11, value_info("x", FLOAT, (2,)))),
    "cut": WDBC[:-1],
    "text": b"not a model at all",
    "a length past the end": b"\x3a\xff\xff\xff\xff\x0f",
    "a group": b"\x3b",
    "an endless varint": b"\x38" + b"\xff" * 11,
    "a varint that is cut": b"\x38\xff",
    "fixed past the end": b"\x39\x00",
    "a description of many megabytes": graph(field(11, bytes(17 << 20))),
    "descriptions of many megabytes": graph(*[field(11, field(1, bytes(9 << 20)))] * 2),
    "a name that is no text": graph(field(11, field(1, b"\xff"))),
}


@pytest.mark.parametrize("model", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_model(model: bytes) -> None:
    with pytest.raises(ModelError) as refused:
        read(model)
    assert refused.value.code is Code.MODEL_MALFORMED


@given(at=st.integers(0, len(WDBC) - 1), value=st.integers(0, 255), cut=st.integers(0, len(WDBC)))
def test_damage_is_read_as_protobuf_reads_it_or_refused(at: int, value: int, cut: int) -> None:
    damaged = (WDBC[:at] + bytes([value]) + WDBC[at + 1 :])[: cut or None]
    try:
        inputs, outputs = read(damaged)
    except ModelError as refused:
        assert refused.code is Code.MODEL_MALFORMED  # noqa: PT017 - either way is right
        return
    try:
        parsed = Model.FromString(damaged).graph
    except DecodeError:
        return  # damage within what is skipped here
    names = {initialiser.name for initialiser in parsed.initializer}
    assert [spec.name for spec in inputs] == [i.name for i in parsed.input if i.name not in names]
    assert [spec.name for spec in outputs] == [output.name for output in parsed.output]
