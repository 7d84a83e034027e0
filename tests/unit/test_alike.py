"""Messages that are read all at once are read as each by itself would be (SPEC 5.6.2, 5.10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate import tensors
from casemate.errors import Code, RequestError
from casemate.oip.v2 import inference_pb2 as pb
from casemate.tensors import TensorSpec

SPECS = (TensorSpec("x", "FP32", (0, 3)), TensorSpec("index", "INT64", (0,)))
OUTPUTS = (TensorSpec("y", "FP32", (0, 3)), TensorSpec("label", "INT64", (0,)))
NUMBERS = sorted(set(tensors.NUMERIC) - {"BOOL", "BF16"})


def message(value: float, rows: int = 1, **changed: object) -> bytes:
    inputs: dict[str, Any] = {
        "x": np.full((rows, 3), value, np.float32),
        "index": np.full(rows, int(value), np.int64),
    }
    asked = pb.ModelInferRequest.FromString(tensors.to_request(inputs, ["label"]))
    for name, given_ in changed.items():
        setattr(asked, name, given_)
    raws = list(asked.raw_input_contents)
    del asked.raw_input_contents[:]
    ends = pb.ModelInferRequest(raw_input_contents=raws)
    return asked.SerializeToString() + ends.SerializeToString()


def reader() -> tensors.RequestReader:
    return tensors.RequestReader(SPECS, OUTPUTS)


def alike(messages: list[bytes]) -> bool:
    """Whether they are read together; if so, as each by itself."""
    views = [memoryview(one) for one in messages]
    read = reader().read_alike(views)
    if read is None:
        return False
    for at, view in enumerate(views):
        alone = reader().read(view)
        assert (alone.outputs, alone.id, alone.timeout_us) == (*read[1:3], read.timeout_us)
        assert {*alone.inputs} == {*read.inputs}
        for name, array in read.inputs.items():
            assert array[at].dtype == alone.inputs[name].dtype
            assert array[at].shape == alone.inputs[name].shape
            assert array[at].tobytes() == alone.inputs[name].tobytes()
            assert not array.flags.writeable
    return True


def test_messages_that_differ_in_numbers_alone_are_read_together() -> None:
    for rows in (1, 2, 5):
        assert alike([message(value, rows) for value in range(9)])


def other_order() -> bytes:
    x, index = np.zeros((1, 3), np.float32), np.zeros(1, np.int64)
    return tensors.to_request({"index": index, "x": x}, ["label"])


@pytest.mark.parametrize(
    "odd",
    [
        message(1, 2),
        message(1, id="a"),
        message(1, model_name="m"),
        message(1)[:-1],
        message(1) + b"\0",
        other_order(),
        message(1).replace(b"label", b"labe1"),
        message(1).replace(b"FP32", b"FP16"),
        message(1).replace(b"\x3a\x0c", b"\x32\x0c"),
        b"",
        b"x" * len(message(1)),
    ],
)
def test_one_that_differs_in_more_is_read_by_itself(odd: bytes) -> None:
    for at in range(4):
        messages = [message(value) for value in range(3)]
        messages.insert(at, odd)
        try:
            assert not alike(messages)
        except RequestError:
            assert at == 0  # what the first one says
    assert alike([message(0), message(1)])


def test_every_byte_beside_the_numbers_counts() -> None:
    first, second = message(1), message(2)
    numbers = {at for at in range(len(first)) if first[at] != second[at]}
    ends = len(first) - 8, len(first) - 10 - 12  # of the index, and of x
    for at in range(len(first)):
        changed = first[:at] + bytes([first[at] ^ 0x40]) + first[at + 1 :]
        within = at >= ends[0] or ends[1] <= at < ends[1] + 12
        assert within or at not in numbers
        assert alike([first, changed]) is within


def test_an_own_name_for_the_request_is_each_ones() -> None:
    assert not alike([message(1, id="a"), message(2, id="b")])
    assert not alike([message(1, id="a"), message(2, id="a")])  # its description is not kept


def test_contents_that_take_a_look_are_not_read_together() -> None:
    for datatype, array in (("BOOL", np.zeros((1,), np.bool_)), ("BYTES", np.array(["a"]))):
        spec = (TensorSpec("x", datatype, (0,)),)
        made = [memoryview(tensors.to_request({"x": array}))] * 2
        assert tensors.RequestReader(spec, spec).read_alike(made) is None


def test_what_the_first_one_says_is_checked() -> None:
    with pytest.raises(RequestError) as caught:
        alike([tensors.to_request({"x": np.zeros((1, 3), np.float32)})] * 2)
    assert caught.value.code is Code.INVALID_INPUT


def test_tensors_without_elements_and_raw_contents_of_another_size() -> None:
    assert not alike([message(1, 0)] * 2)
    short = pb.ModelInferRequest.FromString(message(1))
    short.raw_input_contents[0] = b"1234"
    assert not alike([short.SerializeToString()] * 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_responses_are_read_together_as_each_alone(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True))
    count = data.draw(st.integers(2, 5))
    kinds = {name: data.draw(st.sampled_from(NUMBERS)) for name in names}
    shapes = {name: data.draw(st.lists(st.integers(1, 3), max_size=3)) for name in names}
    made = []
    for _ in range(count):
        outputs = {
            name: np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), dtype).reshape(
                shapes[name]
            )
            for name in names
            for dtype in [tensors.NUMERIC[kinds[name]]]
            for size in [int(np.prod(shapes[name], dtype=int)) * dtype.itemsize]
        }
        made.append(memoryview(tensors.to_response(outputs, "m", 1)))
    read = tensors.from_responses(made)
    assert read is not None
    for one, whole in zip(read, made, strict=True):
        alone = tensors.from_response(whole)
        assert [*one] == [*alone]
        for name, array in one.items():
            assert (array.dtype, array.shape) == (alone[name].dtype, alone[name].shape)
            assert array.tobytes() == alone[name].tobytes()
            assert array.flags.aligned
            assert not array.flags.writeable


def test_responses_that_differ_in_shape_are_not_read_together() -> None:
    made = [
        memoryview(tensors.to_response({"y": np.zeros(size, np.float32)}, "m", 1))
        for size in (1, 2)
    ]
    assert tensors.from_responses(made) is None


@pytest.mark.parametrize("rows", [1, 3])
def test_each_response_has_its_share_of_every_output(rows: int) -> None:
    outputs: dict[str, Any] = {
        "y": np.arange(rows * 4 * 6, dtype=np.float32).reshape(rows * 4, 2, 3),
        "label": np.arange(rows * 4, dtype=np.int64),
        "strided": np.arange(rows * 16, dtype=np.int16).reshape(rows * 8, 2)[::2],
    }
    shares = tensors.response_shares(outputs, (rows * 4, 4), "m", 3, "id")
    assert shares is not None
    for at, share in enumerate(shares):
        mine = {name: array[at * rows : (at + 1) * rows] for name, array in outputs.items()}
        assert b"".join(share) == tensors.to_response(mine, "m", 3, "id")


@pytest.mark.parametrize(
    "output",
    [
        np.zeros(3, np.float32),
        np.zeros(8, np.float32),
        np.zeros((), np.float32),
        np.zeros((1, 4), np.float32),
        np.array(["a"] * 4, np.object_),
    ],
)
def test_an_output_of_other_rows_or_of_strings_is_not_shared(output: np.ndarray) -> None:
    good = np.zeros(4, np.float32)
    assert tensors.response_shares({"y": good, "z": output}, (4, 4), "m", 3) is None
    assert tensors.response_shares({"y": good}, (4, 4), "m", 3) is not None
