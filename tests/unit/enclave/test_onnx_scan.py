"""Every way in which a model can refer to a file is found (THREATS M3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import limits
from casemate.errors import Code, ModelError
from casemate_enclave.onnx_scan import external_locations
from tests.support import onnx_bytes as onnx
from tests.support.onnx_bytes import field, graph, model, node

OUTSIDE = onnx.external_tensor("w", (3, 2), location="w.bin", offset="0", length="24")
_TENSOR, _TENSORS, _SPARSE, _SPARSES = 5, 10, 22, 23


def attribute(number: int, value: bytes) -> bytes:
    return field(1, "a") + field(number, value)


def constant(number: int, value: bytes) -> bytes:
    return graph((node("Constant", (), ("y",), attribute(number, value)),), (), ())


def nested(depth: int) -> bytes:
    inner = graph((), (), (), (OUTSIDE,))
    for _ in range(depth):
        inner = graph((node("If", ("c",), ("y",), onnx.graph_attribute("b", inner)),), (), ())
    return inner


@pytest.mark.parametrize(
    "content",
    [
        model(graph((onnx.MATMUL,), (onnx.X,), (onnx.Y,), (OUTSIDE,))),
        model(constant(_TENSOR, OUTSIDE)),
        model(constant(_TENSORS, OUTSIDE)),
        model(constant(_SPARSE, field(1, OUTSIDE))),
        model(constant(_SPARSES, field(2, OUTSIDE))),
        model(field(15, field(1, OUTSIDE))),
        model(nested(3)),
        model(graph((node("If", (), (), field(11, graph((), (), (), (OUTSIDE,)))),), (), ())),
        # A message in two pieces is merged by protobuf.
        field(7, b"") + field(7, field(5, OUTSIDE)),
        # A function, and the graphs of training.
        field(25, field(7, node("Constant", (), ("y",), attribute(_TENSOR, OUTSIDE)))),
        field(25, field(11, attribute(_TENSOR, OUTSIDE))),
        field(20, field(1, graph((), (), (), (OUTSIDE,)))),
        field(20, field(2, graph((), (), (), (OUTSIDE,)))),
    ],
)
def test_a_reference_is_found_wherever_it_stands(content: bytes) -> None:
    assert external_locations(content) == {"w.bin"}


def test_either_sign_of_external_data_counts() -> None:
    without_location = field(2, 1) + field(14, 1)
    with pytest.raises(ModelError):
        external_locations(model(field(5, without_location)))
    without_flag = field(13, field(1, "location") + field(2, "w.bin"))
    assert external_locations(model(field(5, without_flag))) == {"w.bin"}


@pytest.mark.parametrize(
    "entries",
    [
        (("location", "a"), ("location", "b")),
        (("location", "a"), ("location", "a")),
        (("offset", "1"),),
    ],
)
def test_a_reference_that_names_no_one_file_is_refused(
    entries: tuple[tuple[str, str], ...],
) -> None:
    where = b"".join(field(13, field(1, key) + field(2, text)) for key, text in entries)
    with pytest.raises(ModelError) as refusal:
        external_locations(model(field(5, where)))
    assert refusal.value.code == Code.MODEL_REJECTED


def test_two_values_in_one_entry_are_refused() -> None:
    entry = field(1, "location") + field(2, "good") + field(2, "evil")
    with pytest.raises(ModelError):
        external_locations(model(field(5, field(13, entry))))


def test_models_without_external_data_refer_to_nothing() -> None:
    for content in (onnx.linear(), onnx.endless(), onnx.failing()):
        assert external_locations(content) == set()


def test_fixed_width_fields_and_long_integers_are_skipped() -> None:
    a_float = field(1, "alpha") + b"\x15\0\0\x80\x3f" + field(20, 1)
    a_double = b"\x11" + bytes(8)
    long_one = b"\x08\x81\x80\x00"  # ir_version
    content = long_one + field(7, field(1, node("Elu", ("x",), ("y",), a_float, a_double)))
    assert external_locations(content) == set()


def test_a_tag_with_bits_that_protobuf_drops_hides_nothing() -> None:
    # Field 7, the graph, written as a five-byte varint with bit 35 set: onnxruntime reads field 7.
    hidden = model(b"")
    overlong = bytes([0x3A | 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]) + b"\x00"
    with pytest.raises(ModelError) as refusal:
        external_locations(hidden + overlong)
    assert refusal.value.code == Code.MODEL_REJECTED


def test_nesting_is_bounded() -> None:
    assert external_locations(model(nested(5))) == {"w.bin"}
    with pytest.raises(ModelError):
        external_locations(model(nested(limits.ONNX_DEPTH)))


@pytest.mark.parametrize("content", [b"\x3a\x05abc", b"\x3b", b"\xff" * 11, b"\x3a", b"\x38\x01"])
def test_what_cannot_be_walked_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError) as refusal:
        external_locations(content)
    assert refusal.value.code == Code.MODEL_REJECTED


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_walked_or_refused(noise: bytes, at: int) -> None:
    content = onnx.endless()
    for damaged in (noise, content[:at] + noise + content[at:]):
        try:
            external_locations(damaged)
        except ModelError as error:
            assert error.code == Code.MODEL_REJECTED  # noqa: PT017
