"""Model metadata of the Open Inference Protocol (SPEC 5.6.1)."""

from __future__ import annotations

import pytest

from casemate.errors import Code, RequestError
from casemate.oip.metadata import (
    PLATFORM,
    ModelMetadata,
    encode_metadata,
    metadata_request,
    parse_metadata,
)
from casemate.oip.v2 import inference_pb2 as pb
from casemate.tensors import TensorSpec

METADATA = ModelMetadata(
    "wdbc",
    (1, 12),
    PLATFORM,
    (TensorSpec("x", "FP32", (0, 30)), TensorSpec("n", "INT64", ())),
    (TensorSpec("half", "BF16", (0,)),),
)


def test_metadata_come_out_as_they_went_in() -> None:
    assert parse_metadata(encode_metadata(METADATA)) == METADATA


def test_on_the_wire_any_length_is_minus_one() -> None:
    parsed = pb.ModelMetadataResponse.FromString(encode_metadata(METADATA))
    assert list(parsed.inputs[0].shape) == [-1, 30]
    assert list(parsed.versions) == ["1", "12"]


def test_the_request_is_the_protocols() -> None:
    parsed = pb.ModelMetadataRequest.FromString(metadata_request("wdbc", 12))
    assert (parsed.name, parsed.version) == ("wdbc", "12")
    assert pb.ModelMetadataRequest.FromString(metadata_request("wdbc", None)).version == ""


@pytest.mark.parametrize("message", [b"\xff", pb.ModelMetadataResponse(versions=["x"])])
def test_other_bytes_are_one_clear_error(message: bytes | pb.ModelMetadataResponse) -> None:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    with pytest.raises(RequestError) as refused:
        parse_metadata(data)
    assert refused.value.code is Code.INVALID_REQUEST
