"""Data sealed at rest: its readers have listed models run on it and never see it (SPEC 8.5).

The owner seals under a key of their own KMS. An enclave unwraps that key by attested Decrypt and
uses the content for a verified caller among the readers, in a model among those listed.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate import cbor, limits, wire
from casemate.envelope.chunks import BrokenSealError, open_content, seal_pieces
from casemate.envelope.units import request_unit, split_single
from casemate.errors import Code, KeyReleaseError, ObjectError
from casemate.kms_context import parse_key_arn

if TYPE_CHECKING:
    from collections.abc import Collection

MAGIC: Final = b"CASEDAT1"
VERSION: Final = 1
OBJECT_ID_BYTES: Final = 32
READER_BYTES: Final = 32

_LENGTH: Final = struct.Struct(">I")
_HEADER_AT: Final = len(MAGIC) + _LENGTH.size
_FIELDS: Final[dict[str, type | tuple[type, ...]]] = {
    "v": int,
    "object_id": bytes,
    "key_commitment": bytes,
    "audience": str,
    "readers": list,
    "models": list,
    "kms_key": str,
    "wrapped_key": bytes,
}


def _require(condition: object, what: str) -> None:
    if not condition:
        raise ObjectError(Code.OBJECT_MALFORMED, f"sealed data: {what}")


@dataclass(frozen=True, slots=True)
class DataHeader:
    """What the owner says of sealed data; believed once the content opened under its key.

    ``readers`` are Ed25519 public keys of 32 bytes, ``models`` model digests of 48 bytes (SPEC
    8.4), both ascending; ``audience`` names the one service that may use the content.
    """

    object_id: bytes
    key_commitment: bytes
    audience: str
    readers: tuple[bytes, ...]
    models: tuple[bytes, ...]
    kms_key: str
    wrapped_key: bytes

    def __post_init__(self) -> None:
        _require(len(self.object_id) == OBJECT_ID_BYTES, "object_id has a wrong length")
        _require(len(self.key_commitment) == wire.KEY_BYTES, "key_commitment has a wrong length")
        audience = len(self.audience.encode())
        _require(1 <= audience <= limits.AUDIENCE_MAX, "audience out of bounds")
        _check_list(self.readers, READER_BYTES, limits.DATA_READERS_MAX, "readers")
        _check_list(self.models, wire.HASH_BYTES, limits.DATA_MODELS_MAX, "models")
        try:
            parse_key_arn(self.kms_key)
        except KeyReleaseError:
            _require(condition=False, what="kms_key is not the ARN of a single-Region KMS key")
        good = 1 <= len(self.wrapped_key) <= limits.CIPHERTEXT_BLOB_MAX
        _require(good, "wrapped_key has a wrong length")

    def encode(self) -> bytes:
        """Return the CBOR map of SPEC 8.6."""
        fields = {name: getattr(self, name) for name in _FIELDS if name != "v"}
        return cbor.encode({"v": VERSION, **fields})

    @classmethod
    def parse(cls, data: bytes) -> DataHeader:
        """Parse the CBOR map; raises ObjectError (OBJECT_MALFORMED)."""
        try:
            fields = cbor.decode_map(data, _FIELDS)
        except cbor.CborError as error:
            raise ObjectError(Code.OBJECT_MALFORMED, f"sealed data: {error}") from None
        _require(fields.pop("v") == VERSION, "unknown version")
        for name in ("readers", "models"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


@dataclass(frozen=True, slots=True, eq=False)
class SealedData:
    """A sealed object, taken apart; nothing of it is trusted before ``open`` returned.

    ``digest`` is ``H(m)``, by which requests name the object.
    """

    header: DataHeader
    digest: bytes
    ciphertext: memoryview

    @classmethod
    def parse(cls, data: wire.Buffer) -> SealedData:
        """Take an object apart; ``ciphertext`` is a view of ``data``.

        Raises ObjectError (OBJECT_MALFORMED).
        """
        view = memoryview(data).toreadonly()
        _require(
            view[: len(MAGIC)].tobytes() == MAGIC and len(view) >= _HEADER_AT, "not sealed data"
        )
        (length,) = _LENGTH.unpack_from(view, len(MAGIC))
        end = _HEADER_AT + length
        _require(0 < length <= limits.DATA_HEADER_MAX and end < len(view), "header out of bounds")
        header = DataHeader.parse(bytes(view[_HEADER_AT:end]))
        return cls(header, wire.digest(view[:end]), view[end:])

    def open(self, data_key: bytes) -> memoryview:
        """Return the content, a ``ModelInferRequest``; from now on the header is its owner's.

        Raises ObjectError (OBJECT_OPEN_FAILED) with one text, whatever failed.
        """
        try:
            key = _content_key(_committed(self.header, data_key), self.digest)
            return split_single(open_content(key, self.digest, self.ciphertext))
        except BrokenSealError:
            raise ObjectError(Code.OBJECT_OPEN_FAILED, "the sealed data does not open") from None


def seal_data(
    message: wire.Buffer,
    *,
    data_key: bytes,
    wrapped_key: bytes,
    kms_key: str,
    audience: str,
    readers: Collection[bytes],
    models: Collection[bytes],
) -> bytes:
    """Return ``message``, a ``ModelInferRequest``, sealed for ``readers`` and ``models``.

    ``wrapped_key`` is the 32-byte ``data_key`` under ``kms_key`` with the encryption context of
    SPEC 8.6; a data key seals one object. Raises ObjectError (OBJECT_MALFORMED) for a statement
    that SPEC 8.6 does not allow, EnvelopeError (TOO_LARGE).
    """
    prk = wire.extract(data_key)
    header = DataHeader(
        object_id=secrets.token_bytes(OBJECT_ID_BYTES),
        key_commitment=wire.expand(prk, "commit"),
        audience=audience,
        readers=tuple(sorted(set(readers))),
        models=tuple(sorted(set(models))),
        kms_key=kms_key,
        wrapped_key=wrapped_key,
    )
    _require(message, "no content")
    signed = MAGIC + wire.lp(header.encode())
    digest = wire.digest(signed)
    unit = request_unit([message])
    return signed + seal_pieces(_content_key(prk, digest), digest, unit.chunks(), unit.length)


def _content_key(prk: bytes, digest: bytes) -> bytes:
    return wire.expand(prk, "data", digest)


def _committed(header: DataHeader, data_key: bytes) -> bytes:
    if len(data_key) != wire.KEY_BYTES:
        raise BrokenSealError
    prk = wire.extract(data_key)
    if not hmac.compare_digest(wire.expand(prk, "commit"), header.key_commitment):
        raise BrokenSealError
    return prk


def _check_list(values: tuple[bytes, ...], length: int, most: int, what: str) -> None:
    _require(1 <= len(values) <= most, f"{what} out of bounds")
    for value in values:
        # Decoded CBOR may hold anything, whatever the annotation says.
        good = type(value) is bytes and len(value) == length
        _require(good, f"{what}: not {length} bytes each")
    _require(sorted(set(values)) == list(values), f"{what} are not strictly ascending")
