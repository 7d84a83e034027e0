"""The header of a sealed model (SPEC 8.2) and the model digest (SPEC 8.4)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from casemate import cbor, limits, wire
from casemate.errors import Code, KeyReleaseError, ModelError
from casemate.kms_context import parse_key_arn
from casemate.sealed_model.loop import parse_loop
from casemate.sealed_model.serving import Serving
from casemate.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.sealed_model.loop import ModelLoop

MAGIC: Final = b"CASEMDL2"
VERSION: Final = 2
RUNTIME: Final = "onnx"
ANY_CALLER: Final = "any"
SIGNATURE_BYTES: Final = 64
FILE_ID_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
PREFIX_BYTES: Final = len(MAGIC) + 4  # before the header

Callers = Literal["any"] | tuple[bytes, ...]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_PATH: Final = re.compile(r"[A-Za-z0-9._/-]+", re.ASCII)
_U32_MAX: Final = (1 << 32) - 1
_FIELDS: Final[dict[str, type | tuple[type, ...]]] = {
    "v": int,
    "file_id": bytes,
    "key_commitment": bytes,
    "publisher": bytes,
    "name": str,
    "version": int,
    "inputs": list,
    "outputs": list,
    "answer_bucket": int,
    "callers": (str, list),
    "runtime": str,
    "loop": (dict, type(None)),
    "kms_key": str,
    "wrapped_key": bytes,
    "entries": list,
    "serving": dict,
}


def _require(condition: object, what: str) -> None:
    if not condition:
        raise ModelError(Code.MODEL_MALFORMED, f"model header: {what}")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One file of a model; ``length`` in bytes, ``digest`` its content's (SPEC 8.4)."""

    path: str
    length: int
    digest: bytes

    def check(self) -> None:
        """Refuse what SPEC 8.2 does not allow; raises ModelError (MODEL_MALFORMED)."""
        _require(_PATH.fullmatch(self.path) is not None, "path with other than A-Za-z0-9._/-")
        _require(len(self.path) <= limits.NAME_MAX, "path too long")
        components = self.path.split("/")
        _require(not {"", ".", ".."} & set(components), "path with an empty, . or .. component")
        _require(len(self.digest) == wire.HASH_BYTES, "digest of an entry has a wrong length")

    def as_map(self) -> dict[str, cbor.Value]:
        """Return the CBOR map of SPEC 8.2."""
        return {"path": self.path, "length": self.length, "digest": self.digest}


def head_bytes(prefix: bytes) -> int:
    """Return how many bytes precede the first chunk, as the first ``PREFIX_BYTES`` state it.

    At most as many as any header allows, whatever they state.
    """
    header = int.from_bytes(prefix[len(MAGIC) : PREFIX_BYTES], "big")
    return PREFIX_BYTES + min(header, limits.MODEL_HEADER_MAX) + 4 + SIGNATURE_BYTES


def model_digest(entries: Sequence[ModelEntry]) -> bytes:
    """Return the model digest, 48 bytes: what clients pin (SPEC 8.4)."""
    encoded = cbor.encode([entry.as_map() for entry in entries])
    return wire.digest(wire.label("digest"), wire.lp(encoded))


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What a publisher says of a sealed model; says nothing until its signature is verified."""

    file_id: bytes
    key_commitment: bytes
    publisher: bytes
    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    answer_bucket: int
    callers: Callers
    runtime: str
    kms_key: str
    wrapped_key: bytes
    entries: tuple[ModelEntry, ...]
    serving: Serving = field(default_factory=Serving)
    loop: ModelLoop | None = None

    def __post_init__(self) -> None:
        _require(len(self.file_id) == FILE_ID_BYTES, "file_id has a wrong length")
        _require(len(self.key_commitment) == wire.KEY_BYTES, "key_commitment has a wrong length")
        _require(len(self.publisher) == PUBLIC_KEY_BYTES, "publisher has a wrong length")
        _require(_NAME.fullmatch(self.name), "name does not match its pattern")
        _require(1 <= self.version <= _U32_MAX, "version out of bounds")
        _require(self.runtime == RUNTIME, "unknown runtime")
        _require(0 <= self.answer_bucket <= limits.ANSWER_BUCKET_MAX, "answer_bucket out of bounds")
        _check_specs(self.inputs, "inputs")
        _check_specs(self.outputs, "outputs")
        _check_callers(self.callers)
        if self.loop is not None:
            self.loop.check(self.inputs)
        _check_key(self.kms_key, self.wrapped_key)
        _check_entries(self.entries)
        self.serving.check(self.inputs + self.outputs)
        joined = self.serving.batch_rows is not None
        _require(self.loop is None or not joined, "batch_rows of a model with a loop")

    @property
    def digest(self) -> bytes:
        """The model digest, 48 bytes (SPEC 8.4)."""
        return model_digest(self.entries)

    @property
    def total_bytes(self) -> int:
        """The length of all contents together."""
        return sum(entry.length for entry in self.entries)

    def encode(self) -> bytes:
        """Return the CBOR map of SPEC 8.2; raises ModelError if it passes its bound."""
        encoded = cbor.encode(
            {
                "v": VERSION,
                "file_id": self.file_id,
                "key_commitment": self.key_commitment,
                "publisher": self.publisher,
                "name": self.name,
                "version": self.version,
                "inputs": [_spec_map(spec) for spec in self.inputs],
                "outputs": [_spec_map(spec) for spec in self.outputs],
                "answer_bucket": self.answer_bucket,
                "callers": self.callers,
                "runtime": self.runtime,
                "loop": None if self.loop is None else self.loop.as_map(),
                "kms_key": self.kms_key,
                "wrapped_key": self.wrapped_key,
                "entries": [entry.as_map() for entry in self.entries],
                "serving": self.serving.as_map(),
            }
        )
        _require(len(encoded) <= limits.MODEL_HEADER_MAX, "too long")
        return encoded

    @classmethod
    def parse(cls, data: bytes) -> ModelHeader:
        """Parse the CBOR map; raises ModelError (MODEL_MALFORMED)."""
        _require(len(data) <= limits.MODEL_HEADER_MAX, "too long")
        try:
            fields = cbor.decode_map(data, _FIELDS)
            _require(fields.pop("v") == VERSION, "unknown version")
            for key in ("inputs", "outputs"):
                fields[key] = tuple(map(_parse_spec, fields[key]))
            fields["entries"] = tuple(map(_parse_entry, fields["entries"]))
            fields["serving"] = Serving.parse(fields["serving"])
            fields["loop"] = parse_loop(fields["loop"])
        except cbor.CborError as error:
            raise ModelError(Code.MODEL_MALFORMED, f"model header: {error}") from None
        if isinstance(fields["callers"], list):
            fields["callers"] = tuple(fields["callers"])
        return cls(**fields)


def _spec_map(spec: TensorSpec) -> dict[str, cbor.Value]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _parse_spec(value: Any) -> TensorSpec:  # noqa: ANN401 - decoded CBOR
    fields = cbor.fields(value, {"name": str, "datatype": str, "shape": list})
    return TensorSpec(fields["name"], fields["datatype"], tuple(fields["shape"]))


def _parse_entry(value: Any) -> ModelEntry:  # noqa: ANN401 - decoded CBOR
    return ModelEntry(**cbor.fields(value, {"path": str, "length": int, "digest": bytes}))


def _check_specs(specs: tuple[TensorSpec, ...], what: str) -> None:
    _require(1 <= len(specs) <= limits.TENSORS_MAX, f"{what} out of bounds")
    _require(len({spec.name for spec in specs}) == len(specs), f"{what} with a name twice")
    for spec in specs:
        _require(1 <= len(spec.name.encode()) <= limits.NAME_MAX, f"{what}: name out of bounds")
        _require(spec.datatype in DATATYPES, f"{what}: unknown datatype")
        _require(len(spec.shape) <= limits.RANK_MAX, f"{what}: rank out of bounds")
        _require(all(type(length) is int for length in spec.shape), f"{what}: shape")


def _check_callers(callers: Callers) -> None:
    if isinstance(callers, str):
        _require(callers == ANY_CALLER, "callers is neither `any` nor keys")
        return
    _require(1 <= len(callers) <= limits.MODEL_CALLERS_MAX, "callers out of bounds")
    for caller in callers:
        # Decoded CBOR may hold anything, whatever the annotation says.
        good = type(caller) is bytes and len(caller) == PUBLIC_KEY_BYTES
        _require(good, "a caller is not a key of 32 bytes")
    _require(sorted(set(callers)) == list(callers), "callers are not strictly ascending")


def _check_key(kms_key: str, wrapped_key: bytes) -> None:
    try:
        parse_key_arn(kms_key)
    except KeyReleaseError:
        _require(condition=False, what="kms_key is not the ARN of a single-Region KMS key")
    good = 1 <= len(wrapped_key) <= limits.CIPHERTEXT_BLOB_MAX
    _require(good, "wrapped_key has a wrong length")


def _check_entries(entries: tuple[ModelEntry, ...]) -> None:
    _require(1 <= len(entries) <= limits.MODEL_ENTRIES_MAX, "entries out of bounds")
    for entry in entries:
        entry.check()
    _require(len({entry.path for entry in entries}) == len(entries), "a path twice")
    _require(sum(entry.length for entry in entries) > 0, "no content")
