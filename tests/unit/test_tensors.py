from __future__ import annotations

import re
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import limits, protowire
from casemate.errors import CasemateError, Code
from casemate.oip.v2 import inference_pb2 as pb
from casemate.tensors import (
    BFLOAT16,
    DATATYPES,
    NUMERIC,
    InferRequest,
    RequestReader,
    TensorSpec,
    from_response,
    read_request,
    to_request,
    to_response,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

SPECS = [TensorSpec("x", "FP32", (0, 3)), TensorSpec("n", "INT64", ())]
OUTPUTS = [TensorSpec("label", "INT64", (0,)), TensorSpec("score", "FP32", (0,))]
X = np.arange(6, dtype=np.float32).reshape(2, 3)
N = np.array(5, np.int64)
Pb = pb.ModelInferRequest


def read(message: bytes) -> InferRequest:
    """Read it; who has read another one with the same description before does alike."""
    knowing = RequestReader(SPECS, OUTPUTS)
    for _ in range(2):
        knowing.read(memoryview(to_request({"x": X, "n": N})))
    try:
        asked = read_request(memoryview(message), SPECS, OUTPUTS)
    except CasemateError as error:
        with pytest.raises(CasemateError, match=f"^{re.escape(str(error))}$"):
            knowing.read(memoryview(message))
        raise
    again = knowing.read(memoryview(message))
    assert again[1:] == asked[1:]
    np.testing.assert_equal(again.inputs, asked.inputs)
    return asked


def refused(message: bytes, code: Code) -> str:
    with pytest.raises(CasemateError) as caught:
        read(message)
    assert caught.value.code == code
    return caught.value.detail


def request() -> pb.ModelInferRequest:
    return pb.ModelInferRequest.FromString(to_request({"x": X, "n": N}))


def test_arrays_come_out_as_they_went_in() -> None:
    arrays, requested, *_ = read(to_request({"x": X, "n": N}, ["score"]))
    np.testing.assert_array_equal(arrays["x"], X)
    np.testing.assert_array_equal(arrays["n"], N)
    assert requested == ("score",)
    assert read(to_request({"n": N, "x": X}))[1] == ("label", "score")


def test_the_message_is_the_protocols() -> None:
    message = request()
    message.model_name = "outer"
    message.id = "42"
    assert [tensor.datatype for tensor in message.inputs] == ["FP32", "INT64"]
    assert list(message.inputs[0].shape) == [2, 3]
    assert message.raw_input_contents[0] == X.tobytes()
    np.testing.assert_array_equal(read(message.SerializeToString())[0]["x"], X)
    answer = pb.ModelInferResponse.FromString(to_response({"y": X}, "wdbc", 7))
    assert (answer.model_name, answer.model_version) == ("wdbc", "7")
    assert answer.raw_output_contents[0] == X.tobytes()


def test_arrays_of_a_request_are_read_only_views() -> None:
    for shift in range(4):
        message = memoryview(bytes(shift) + to_request({"x": X, "n": N}))[shift:]
        arrays, *_ = read_request(message, SPECS, OUTPUTS)
        assert np.shares_memory(arrays["x"], np.frombuffer(message, np.uint8))
        np.testing.assert_array_equal(arrays["x"], X)
        with pytest.raises(ValueError, match="read-only"):
            arrays["x"][0, 0] = 1


def test_arrays_of_an_answer_are_read_only_and_aligned() -> None:
    for shift in range(4):
        message = memoryview(bytes(shift) + to_response({"x": X}, "wdbc", 1))[shift:]
        array = from_response(message)["x"]
        assert array.flags.aligned
        np.testing.assert_array_equal(array, X)
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1


def test_empty_tensors_are_read() -> None:
    message = memoryview(bytearray(to_request({"x": np.zeros((0, 3), np.float32), "n": N})))
    assert read_request(message, SPECS, OUTPUTS)[0]["x"].shape == (0, 3)


@pytest.mark.parametrize("datatype", sorted(NUMERIC))
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_datatype(datatype: str, order: Literal["<", ">"]) -> None:
    dtype = NUMERIC[datatype].newbyteorder(order)
    for array in (np.array([[0, 1], [1, 0]], dtype).T, np.array(1, dtype), np.zeros((2, 0), dtype)):
        spec = [TensorSpec("t", datatype, (0,) * array.ndim)]
        received = read_request(to_request({"t": array}), spec, [])[0]["t"]
        assert received.dtype == NUMERIC[datatype]
        np.testing.assert_array_equal(received, array)
        np.testing.assert_array_equal(from_response(to_response({"t": array}, "m", 1))["t"], array)


def test_strings() -> None:
    text = np.array([["a", ""], ["\u00fc", "x" * 300]], object)
    spec = [TensorSpec("t", "BYTES", (0, 2))]
    for array in (text, text.astype(str), np.vectorize(str.encode, otypes=[object])(text)):
        received = read_request(to_request({"t": array}), spec, [])[0]["t"]
        np.testing.assert_array_equal(received, text)
        answered = from_response(to_response({"t": array}, "m", 1))["t"]
        assert answered.tolist() == [[item.encode() for item in row] for row in text.tolist()]
    assert sorted(DATATYPES - set(NUMERIC)) == ["BYTES"]


def test_bfloat16_is_a_type_of_its_own() -> None:
    array = np.array([[1.5, -2.0, np.inf]], ml_dtypes.bfloat16)
    message = to_request({"t": array})
    spec = [TensorSpec("t", "BF16", (0, 3))]
    received = read_request(message, spec, []).inputs["t"]
    assert received.dtype == BFLOAT16
    assert received["bfloat16"].tolist() == [[0x3FC0, 0xC000, 0x7F80]]
    answered = from_response(to_response({"t": received}, "m", 1))["t"]
    np.testing.assert_array_equal(answered.view(ml_dtypes.bfloat16), array)
    for other in ("UINT16", "FP16"):  # as long, and not the same
        with pytest.raises(CasemateError, match="datatype BF16"):
            read_request(message, [TensorSpec("t", other, (0, 3))], [])


def with_parameter(key: str, parameter: pb.InferParameter) -> bytes:
    message = request()
    message.parameters[key].CopyFrom(parameter)
    return message.SerializeToString()


TIMEOUTS = [pb.InferParameter(int64_param=2_500_000), pb.InferParameter(uint64_param=2_500_000)]


@pytest.mark.parametrize("parameter", TIMEOUTS, ids=["int64", "uint64"])
def test_a_timeout_and_an_id_are_understood(parameter: pb.InferParameter) -> None:
    assert (read(to_request({"x": X, "n": N}))[2:]) == ("", None)
    message = pb.ModelInferRequest.FromString(with_parameter("timeout", parameter))
    message.id = "call \u00fc"
    assert read(message.SerializeToString())[2:] == ("call \u00fc", 2_500_000)
    answer = pb.ModelInferResponse.FromString(to_response({"y": X}, "m", 1, "call \u00fc"))
    assert answer.id == "call \u00fc"


@pytest.mark.parametrize(
    ("key", "parameter"),
    [
        ("priority", pb.InferParameter(int64_param=1)),
        ("timeout", pb.InferParameter(string_param="5")),
        ("timeout", pb.InferParameter(double_param=5.0)),
        ("timeout", pb.InferParameter(bool_param=True)),
        ("timeout", pb.InferParameter(int64_param=0)),
        ("timeout", pb.InferParameter(int64_param=-5)),
        ("timeout", pb.InferParameter()),
    ],
)
def test_other_parameters_are_refused(key: str, parameter: pb.InferParameter) -> None:
    refused(with_parameter(key, parameter), Code.INVALID_REQUEST)


def test_parameters_are_given_once_and_ids_are_short_text() -> None:
    once = with_parameter("timeout", pb.InferParameter(int64_param=5))
    entry = protowire.bytes_head(4, 13) + b"\x0a\x07timeout\x12\x02\x10\x05"
    assert read(request().SerializeToString() + entry).timeout_us == 5
    refused(once + entry, Code.INVALID_REQUEST)
    for bad in (b"\xff", b"x" * 256):
        extra = protowire.bytes_head(3, len(bad)) + bad
        refused(request().SerializeToString() + extra, Code.INVALID_REQUEST)


@pytest.mark.parametrize("array", [np.array([1j]), np.array([None]), np.array([1.5], object)])
def test_what_the_protocol_does_not_have_is_not_sent(array: Array) -> None:
    with pytest.raises(CasemateError) as caught:
        to_request({"x": array})
    assert caught.value.code == Code.INVALID_INPUT


def test_not_a_message() -> None:
    good = to_request({"x": X, "n": N})
    for message in (good[:-1], b"\xff", good + b"\x00", b"\x0b\x0c", b"\x00\x00"):
        refused(message, Code.INVALID_REQUEST)


@pytest.mark.parametrize(
    "extra",
    [
        protowire.bytes_head(8, 1) + b"x",  # unknown
        b"\x40\x01",
        b"\x0a\x01a\x0a\x01b",  # model_name twice
        b"\x22\x00",  # parameters
        b"\x3a\x00",  # one raw contents too many
        b"\x2a\x02\x2a\x00",  # a tensor with contents
        b"\x2a\x02\x22\x00",  # a tensor with parameters
        b"\x2a\x06\x0a\x01a\x0a\x01b",  # a tensor with two names
        b"\x2a\x03\x0a\x01\xff",  # a name that is not UTF-8
        b"\x2a\x00",  # a tensor without a name
        b"\x32\x00",  # a requested output without a name
        b"\x32\x05\x0a\x01a\x12\x00",  # a requested output with parameters
        b"\x82\x00",  # a varint that is not the shortest
    ],
)
def test_protobuf_with_two_readings_is_refused(extra: bytes) -> None:
    refused(to_request({"x": X, "n": N}) + extra, Code.INVALID_REQUEST)


def test_contents_are_refused() -> None:
    message = request()
    message.inputs[0].contents.fp32_contents.extend([1.0] * 6)
    assert "raw contents" in refused(message.SerializeToString(), Code.INVALID_REQUEST)


def test_the_number_of_raw_contents_is_that_of_tensors() -> None:
    message = request()
    del message.raw_input_contents[1]
    assert (
        refused(message.SerializeToString(), Code.INVALID_REQUEST) == "2 tensors and 1 raw contents"
    )


def test_the_number_of_tensors_is_bounded() -> None:
    refused(to_request({str(index): N for index in range(65)}), Code.INVALID_REQUEST)
    refused(b"\x3a\x00" * 100_000, Code.INVALID_REQUEST)
    refused(b"\x32\x03\x0a\x01a" * 65, Code.INVALID_REQUEST)


def names(change: dict[str, Array]) -> bytes:
    arrays: dict[str, Array] = {"x": X, "n": N}
    return to_request(arrays | change)


def test_names() -> None:
    assert refused(names({"y": N}), Code.INVALID_INPUT) == (
        "tensor 'y': no such input; the model has x, n"
    )
    assert refused(to_request({"x": X}), Code.INVALID_INPUT) == "tensor 'n': missing"
    message = request()
    message.inputs[1].name = "x"
    assert refused(message.SerializeToString(), Code.INVALID_INPUT).endswith("more than once")
    bad = to_request({"x": X, "n": N}, ["nothing"])
    assert "no such output" in refused(bad, Code.INVALID_INPUT)
    twice = to_request({"x": X, "n": N}, ["label", "label"])
    assert "more than once" in refused(twice, Code.INVALID_INPUT)


def test_datatype_rank_and_dimensions() -> None:
    assert refused(names({"x": X.astype(np.float64)}), Code.INVALID_INPUT) == (
        "tensor 'x': datatype FP64, the model takes FP32"
    )
    assert refused(names({"x": X.T}), Code.INVALID_INPUT) == (
        "tensor 'x': shape [3, 2], the model takes [any, 3]"
    )
    assert "shape [6]" in refused(names({"x": X.reshape(6)}), Code.INVALID_INPUT)
    assert "the model takes []" in refused(names({"n": N.reshape(1)}), Code.INVALID_INPUT)


@pytest.mark.parametrize(
    "shape",
    [
        [-1, 3],
        [-2, -3],
        [2, 2],
        [1 << 31, 3],
        [1 << 62, 4],
        [1 << 62, 0],
        [(1 << 63) - 1, (1 << 63) - 1],
        [3],
        [2, 3, 1 << 40, 0],
        [1] * 9,
    ],
)
def test_shapes_that_lie_are_refused_without_memory(shape: list[int]) -> None:
    message = request()
    message.inputs[0].shape[:] = shape
    encoded = message.SerializeToString()
    tracemalloc.start()
    detail = refused(encoded, Code.INVALID_INPUT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert detail.startswith("tensor 'x': ")
    assert peak < 100_000


@pytest.mark.parametrize(
    ("shape", "raw"), [([-2, -3], bytes(24)), ([-1, 0], b""), ([1 << 62, 0], b"")]
)
def test_shapes_that_lie_are_refused_where_the_model_takes_any(
    shape: list[int], raw: bytes
) -> None:
    described = Pb.InferInputTensor(name="x", datatype="FP32", shape=shape)
    question = Pb(inputs=[described], raw_input_contents=[raw]).SerializeToString()
    output = pb.ModelInferResponse.InferOutputTensor(name="x", datatype="FP32", shape=shape)
    answer = pb.ModelInferResponse(outputs=[output], raw_output_contents=[raw]).SerializeToString()
    with pytest.raises(CasemateError, match="out of bounds"):
        read_request(question, [TensorSpec("x", "FP32", (0, 0))], [])
    with pytest.raises(CasemateError, match="out of bounds"):
        from_response(answer)


def test_raw_lengths() -> None:
    message = request()
    message.raw_input_contents[0] += b"\0"
    assert refused(message.SerializeToString(), Code.INVALID_INPUT) == (
        "tensor 'x': 25 bytes, 24 for FP32 of shape [2, 3]"
    )


def test_unknown_datatypes_and_odd_booleans() -> None:
    message = request()
    message.inputs[0].datatype = "FP8"
    assert "unknown datatype 'FP8'" in refused(message.SerializeToString(), Code.INVALID_INPUT)
    spec = [TensorSpec("b", "BOOL", (0,))]
    boolean = pb.ModelInferRequest.FromString(to_request({"b": np.array([True, False])}))
    boolean.raw_input_contents[0] = b"\x02\x00"
    with pytest.raises(CasemateError, match="neither 0 nor 1"):
        read_request(boolean.SerializeToString(), spec, [])


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not 2 strings"),
        (b"\0\0\0", "not 2 strings"),
        (struct.pack("<I", 1) + b"a", "not 2 strings"),
        (struct.pack("<I", 1) + b"a" + struct.pack("<I", 2) + b"b", "not 2 strings"),
        (struct.pack("<I", 1) + b"a" + struct.pack("<I", 0xFFFFFFFF), "not 2 strings"),
        (bytes(12), "not 2 strings"),
        (struct.pack("<I", 1) + b"\xff" + bytes(4), "not UTF-8"),
    ],
)
def test_broken_strings(raw: bytes, why: str) -> None:
    message = Pb(inputs=[Pb.InferInputTensor(name="t", datatype="BYTES", shape=[2])])
    message.raw_input_contents.append(raw)
    with pytest.raises(CasemateError, match=why) as caught:
        read_request(message.SerializeToString(), [TensorSpec("t", "BYTES", (0,))], [])
    assert caught.value.code == Code.INVALID_INPUT


def test_the_number_of_strings_is_bounded() -> None:
    count = limits.STRINGS_MAX // 2 + 1
    described = [Pb.InferInputTensor(name=n, datatype="BYTES", shape=[count]) for n in "ab"]
    message = Pb(inputs=described, raw_input_contents=[bytes(4 * count)] * 2)
    specs = [TensorSpec(name, "BYTES", (0,)) for name in "ab"]
    with pytest.raises(CasemateError, match="strings in one message"):
        read_request(message.SerializeToString(), specs, [])


def test_errors_show_no_values() -> None:
    secret = np.array([["planted-secret"]], object)
    with pytest.raises(CasemateError) as caught:
        read(names({"x": secret}))
    assert "planted" not in str(caught.value)


def test_an_answer_that_names_an_output_twice_is_refused() -> None:
    answer = pb.ModelInferResponse.FromString(to_response({"a": X, "b": X}, "m", 1))
    answer.outputs[1].name = "a"
    with pytest.raises(CasemateError):
        from_response(answer.SerializeToString())


@given(st.binary(max_size=200))
def test_garbage_is_one_clear_error(data: bytes) -> None:
    good = to_request({"x": X, "n": N})
    for message in (data, good + data, good[: len(data) % len(good)] + data):
        try:
            read(message)
        except CasemateError as error:
            assert error.code in {Code.INVALID_REQUEST, Code.INVALID_INPUT}  # noqa: PT017
