"""Models that the vendor of the deployment seals for tests, with any statement replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.client.kms import generate_data_key
from casemate.kms_context import model_context
from casemate.sealed_model import seal_model
from casemate.tensors import TensorSpec
from casemate_devkit.local import MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment

X = (TensorSpec("x", "FP32", (0, 3)),)
Y = (TensorSpec("y", "FP32", (0, 2)),)


def seal(world: LocalDeployment, folder: Path, onnx: bytes, **changes: Any) -> bytes:  # noqa: ANN401 - seal_model's
    """Seal ``onnx`` as the vendor does, with its KMS key, but with any statement replaced."""
    source, output = folder / "model.onnx", folder / "model.sealed"
    source.write_bytes(onnx)
    publisher = changes.get("publisher", world.vendor.signing_key)
    context = model_context(world.vendor.public_key, MODEL)
    sealer = world.aws.kms(world.vendor.principals["sealer"])
    made = generate_data_key(sealer, world.vendor_key, context)
    facts: dict[str, Any] = {
        "files": {"model.onnx": source},
        "data_key": made.key,
        "wrapped_key": made.ciphertext_blob,
        "kms_key": world.vendor_key,
        "publisher": publisher,
        "name": MODEL,
        "version": 7,
        "inputs": X,
        "outputs": Y,
        "answer_bucket": 1024,
        "callers": (world.clinic.public_key,),
    }
    with output.open("wb") as stream:
        seal_model(stream, **{**facts, **changes})
    return output.read_bytes()
