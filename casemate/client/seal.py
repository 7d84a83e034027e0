"""Seal an ONNX model under the publisher's own KMS key (SPEC 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate import limits
from casemate.client.kms import generate_data_key, kms_client
from casemate.client.onnx_alignment import aligned
from casemate.client.onnx_signature import read_signature
from casemate.errors import CasemateError, Code
from casemate.kms_context import model_context
from casemate.sealed_model import ModelHeader, Serving, seal_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from casemate.sealed_model import ModelLoop

Callers = Literal["any"] | tuple[bytes, ...]


def seal_onnx(
    model: Path,
    output: Path,
    *,
    name: str,
    version: int,
    publisher: Ed25519PrivateKey,
    kms_key: str,
    callers: Callers,
    answer_bucket: int = limits.UNIT_MIN,
    external: Sequence[Path] = (),
    serving: Serving | None = None,
    loop: ModelLoop | None = None,
    kms: Any = None,  # noqa: ANN401 - a boto3 KMS client
    progress: Callable[[int], None] = lambda _sealed: None,
) -> ModelHeader:
    """Seal the ONNX file ``model`` to ``output`` and return the sealed file's header.

    The data key comes from ``kms_key`` under the context of SPEC 8.2, so that only an enclave which
    the key's policy accepts can open the file. ``output`` appears only when it is complete;
    ``progress`` gets the number of bytes after each chunk. Memory does not grow with the model, but
    where its large weights lie unaligned a copy in which they do not lies beside ``output`` for the
    time being.
    ``external`` are the files in which the model keeps its weights, in the model's folder or below
    it, as ONNX refers to them; ``serving`` is how the enclave is to serve it (SPEC 8.2.1). With
    ``loop`` the model is one step of a computation (SPEC 8.9); the outputs that only the loop needs
    are then not among the answers.
    """
    others = {_location(path, model): path for path in external}
    try:
        with model.open("rb") as file:
            inputs, outputs = read_signature(file)
    except OSError as error:
        raise CasemateError(Code.INVALID_ARGUMENT, f"{model}: {error.strerror}") from None
    if loop is not None:
        answers = tuple(spec for spec in outputs if spec.name not in loop.outputs)
        outputs = answers or outputs
    public_key = publisher.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    data_key = generate_data_key(
        kms if kms is not None else kms_client(kms_key), kms_key, model_context(public_key, name)
    )
    partial = output.with_name(f".{output.name}.partial")
    try:
        with partial.open("wb") as stream, aligned(model, output.parent) as source:
            header = seal_model(
                stream,
                files={model.name: source, **others},
                data_key=data_key.key,
                wrapped_key=data_key.ciphertext_blob,
                kms_key=kms_key,
                publisher=publisher,
                name=name,
                version=version,
                inputs=inputs,
                outputs=outputs,
                answer_bucket=answer_bucket,
                callers=callers,
                serving=serving,
                loop=loop,
                progress=progress,
            )
        partial.replace(output)
    except OSError as error:
        raise CasemateError(Code.INVALID_ARGUMENT, f"{output}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return header


def _location(path: Path, model: Path) -> str:
    """Return how the model names ``path``: relative to its own folder."""
    try:
        return path.resolve().relative_to(model.resolve().parent).as_posix()
    except ValueError:
        detail = f"{path} does not lie in the model's folder or below it"
        raise CasemateError(Code.INVALID_ARGUMENT, detail) from None
