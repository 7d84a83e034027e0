"""Request parameters, checked against botocore's own model of the KMS API."""

from __future__ import annotations

import base64
import binascii
import functools
import json
from typing import Any

import botocore.session
from botocore.validate import ParamValidator

from casemate_devkit.kms.errors import KmsError, invalid

Shape = Any  # botocore carries no types
Json = Any

TARGET = "TrentService."


@functools.cache
def _service_model() -> Shape:
    return botocore.session.get_session().get_service_model("kms")


def operation_name(target: str | None) -> str:
    """Return the operation that an X-Amz-Target header names; raises UnknownOperationException."""
    name = (target or "").removeprefix(TARGET)
    if target != TARGET + name or name not in _service_model().operation_names:
        raise KmsError("UnknownOperationException", "The X-Amz-Target header names no operation.")
    return name


def decode_parameters(operation: str, body: bytes) -> dict[str, Any]:
    """Return the parameters of ``operation``, blobs as bytes.

    Stricter than AWS: unknown members, duplicate names and nulls are refused, so that a misspelt
    ``Recipient`` can never be taken for none. Raises KmsError.
    """
    try:
        parameters = json.loads(body or b"{}", object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise KmsError("SerializationException", "The body is not a JSON object.") from None
    if not isinstance(parameters, dict):
        raise KmsError("SerializationException", "The body is not a JSON object.")
    shape = _service_model().operation_model(operation).input_shape
    converted = _convert(parameters, shape, "request")
    report = ParamValidator().validate(converted, shape)
    if report.has_errors():
        raise invalid(str(report.generate_report())[:512])
    return dict(converted)


def encode_answer(answer: dict[str, Any]) -> bytes:
    """Return the JSON of an answer, bytes in base64."""
    return json.dumps(answer, default=_base64).encode()


def _base64(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    msg = f"cannot encode {type(value).__name__}"
    raise TypeError(msg)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        msg = "duplicate name"
        raise ValueError(msg)
    return result


def _convert(value: Json, shape: Shape, where: str) -> Json:
    """Decode blobs and check what botocore's validator leaves to the service: enums, maxima."""
    kind = shape.type_name
    if kind == "structure" and isinstance(value, dict):
        members = shape.members
        return {
            name: _convert(item, members[name], f"{where}.{name}") if name in members else item
            for name, item in value.items()
        }
    if kind == "list" and isinstance(value, list):
        value = [_convert(item, shape.member, where) for item in value]
    elif kind == "blob" and isinstance(value, str):
        value = _blob(value, where)
    elif kind == "blob":
        raise invalid(f"{where} is not a blob")
    elif kind == "string" and shape.enum and value not in shape.enum:
        raise invalid(f"{where} must satisfy enum value set: [{', '.join(shape.enum)}]")
    _check_maximum(value, shape, where)
    return value


def _blob(value: str, where: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        raise KmsError("SerializationException", f"{where} is not base64.") from None


def _check_maximum(value: Json, shape: Shape, where: str) -> None:
    maximum = shape.metadata.get("max")
    if maximum is None:
        return
    size = len(value) if isinstance(value, (bytes, str, list, dict)) else value
    if isinstance(size, int) and size > maximum:
        raise invalid(f"{where} must have a length or value of at most {maximum}")
