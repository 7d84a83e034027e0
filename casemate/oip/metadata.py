"""What a model takes and gives: the Open Inference Protocol's ``ModelMetadata`` (SPEC 5.6.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from casemate.errors import Code, RequestError
from casemate.oip.v2 import inference_pb2 as pb
from casemate.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.wire import Buffer

PLATFORM: Final = "onnxruntime_onnx"  # as other servers of the protocol name it
_ANY: Final = -1  # the protocol's dimension of any length; ours is 0 (SPEC 8.2)


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A loaded model: its tensors as the publisher declared them, and the versions beside it."""

    name: str
    versions: tuple[int, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def metadata_request(name: str, version: int | None) -> bytes:
    """Return a ``ModelMetadataRequest``; the enclave goes by the preamble, as for inference."""
    return pb.ModelMetadataRequest(name=name, version=str(version or "")).SerializeToString()


def encode_metadata(metadata: ModelMetadata) -> bytes:
    """Return the ``ModelMetadataResponse``."""
    return pb.ModelMetadataResponse(
        name=metadata.name,
        versions=[str(version) for version in metadata.versions],
        platform=metadata.platform,
        inputs=_described(metadata.inputs),
        outputs=_described(metadata.outputs),
    ).SerializeToString()


def parse_metadata(message: Buffer) -> ModelMetadata:
    """Read a ``ModelMetadataResponse``; raises RequestError (INVALID_REQUEST)."""
    try:
        parsed = pb.ModelMetadataResponse.FromString(bytes(message))
        versions = tuple(int(version) for version in parsed.versions)
    except (DecodeError, ValueError):
        raise RequestError(Code.INVALID_REQUEST, "the metadata cannot be read") from None
    return ModelMetadata(
        parsed.name, versions, parsed.platform, _specs(parsed.inputs), _specs(parsed.outputs)
    )


def _described(specs: Sequence[TensorSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(
            name=spec.name,
            datatype=spec.datatype,
            shape=[length or _ANY for length in spec.shape],
        )
        for spec in specs
    ]


def _specs(
    described: Sequence[pb.ModelMetadataResponse.TensorMetadata],
) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            tensor.name,
            tensor.datatype,
            tuple(0 if length == _ANY else length for length in tensor.shape),
        )
        for tensor in described
    )
