"""Data sealed at rest: the owner's side, in files and in S3 (SPEC 8.5).

Needs `pip install casemate[aws]` for keys and for ``s3://`` locations.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casemate import limits, tensors
from casemate.client.kms import check_policy_of, generate_data_key, kms_client
from casemate.errors import CasemateError, Code
from casemate.kms_context import object_context
from casemate.sealed_data import seal_data

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy as np

    from casemate.attestation import TrustPolicy

_S3: Final = "s3://"
# A padded unit of the largest request, its tags, and the header around it.
_LARGEST: Final = limits.REQUEST_MAX + 16 * (limits.REQUEST_MAX // limits.CHUNK) + 66 * limits.KIB


def seal_tensors(
    inputs: Mapping[str, np.ndarray],
    *,
    policy: TrustPolicy,
    kms_key: str,
    readers: Collection[bytes],
    models: Collection[bytes],
    outputs: Sequence[str] = (),
    kms: Any = None,  # noqa: ANN401 - a boto3 KMS client
) -> bytes:
    """Return ``inputs`` sealed at rest under the owner's KMS key ``kms_key``.

    Only enclaves that ``policy`` accepts get the key, and they use the data only for ``readers``
    (Ed25519 public keys, 32 bytes) in ``models`` (digests, 48 bytes), asking for ``outputs``, all
    by default. Raises PolicyError (KMS_POLICY_TOO_WIDE), CasemateError (KMS_FAILED), ObjectError.
    """
    kms = kms if kms is not None else kms_client(kms_key)
    check_policy_of(kms, kms_key, policy, purpose="object")
    message = tensors.to_request(inputs, outputs)
    data_key = generate_data_key(kms, kms_key, object_context(policy.audience))
    return seal_data(
        message,
        data_key=data_key.key,
        wrapped_key=data_key.ciphertext_blob,
        kms_key=kms_key,
        audience=policy.audience,
        readers=readers,
        models=models,
    )


def write_object(location: str, data: bytes, *, s3: Any = None) -> None:  # noqa: ANN401 - boto3
    """Write to a new file, or to ``s3://bucket/key``; raises CasemateError (INVALID_ARGUMENT)."""
    if not location.startswith(_S3):
        try:
            with Path(location).open("xb") as file:
                file.write(data)
        except OSError as error:
            raise _refused(location, error.strerror) from None
        return
    bucket, key = _place(location)
    _ask(location, (s3 or _s3()).put_object, Bucket=bucket, Key=key, Body=data)


def read_object(location: str, *, s3: Any = None) -> bytes:  # noqa: ANN401 - boto3
    """Read a file or ``s3://bucket/key``; raises CasemateError (INVALID_ARGUMENT, TOO_LARGE)."""
    if location.startswith(_S3):
        bucket, key = _place(location)
        answer = _ask(location, (s3 or _s3()).get_object, Bucket=bucket, Key=key)
        data: bytes = _ask(location, answer["Body"].read, _LARGEST + 1)
    else:
        try:
            with Path(location).open("rb") as file:
                data = file.read(_LARGEST + 1)
        except OSError as error:
            raise _refused(location, error.strerror) from None
    if len(data) > _LARGEST:
        raise CasemateError(Code.TOO_LARGE, f"{location}: above {_LARGEST} bytes")
    return data


def _place(location: str) -> tuple[str, str]:
    bucket, _, key = location.removeprefix(_S3).partition("/")
    if not (bucket and key):
        raise _refused(location, "not s3://BUCKET/KEY")
    return bucket, key


def _s3() -> Any:  # noqa: ANN401 - boto3 is untyped
    try:
        import boto3  # noqa: PLC0415 - an optional extra
    except ImportError:
        detail = "S3 needs the AWS extra: pip install 'casemate[aws]'"
        raise CasemateError(Code.INVALID_ARGUMENT, detail) from None
    return boto3.client("s3")


def _ask(location: str, operation: Any, *positional: Any, **named: Any) -> Any:  # noqa: ANN401 - boto3
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - an optional extra

    try:
        return operation(*positional, **named)
    except ClientError as error:
        raise _refused(location, str(error.response.get("Error", {}).get("Code"))) from None
    except BotoCoreError as error:
        raise _refused(location, f"{type(error).__name__}: {error}") from None


def _refused(location: str, reason: str | None) -> CasemateError:
    return CasemateError(Code.INVALID_ARGUMENT, f"{location}: {reason}")
