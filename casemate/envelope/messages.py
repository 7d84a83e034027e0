"""What is sealed beside the tensors: preamble, trailer, caller's statement (SPEC 5.6, 5.7)."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from casemate import cbor, limits, wire
from casemate.envelope.failure import answer_open_failed
from casemate.envelope.header import VERSION
from casemate.errors import Code, EnvelopeError

if TYPE_CHECKING:
    from casemate.envelope.header import RequestHeader

INFER: Final = "infer"
METADATA: Final = "metadata"
OPERATIONS: Final = frozenset({INFER, METADATA})
CALLER_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
BLINDER_BYTES: Final = 32
SEALED_STATUSES: Final = frozenset(
    {
        Code.OK,
        Code.UNKNOWN_MODEL,
        Code.DIGEST_MISMATCH,
        Code.CALLER_REFUSED,
        Code.INVALID_REQUEST,
        Code.INVALID_INPUT,
        Code.MODEL_FAILED,
        Code.DEADLINE_EXCEEDED,
        Code.OVERLOADED,
        Code.UNAVAILABLE,
        Code.TOO_LARGE,
        Code.OBJECT_MALFORMED,
        Code.OBJECT_REFUSED,
        Code.OBJECT_OPEN_FAILED,
        Code.KEY_RELEASE_DENIED,
        Code.KEY_RELEASE_UNAVAILABLE,
        Code.KEY_RELEASE_INVALID,
    }
)  # SPEC 11.2

_PLAIN_MAX: Final = 384  # below any trailer with a receipt, whose blinders are nobody else's
# A trailer begins so, then comes its unit: of a stream's good answers all else is the same.
_BEFORE_UNIT: Final = b"\xacav\x01dunit"
_UNIT_0: Final = b"\0"
_NO_RECEIPT: Final = [None, None, None]  # nor its blinders
_U32_MAX: Final = (1 << 32) - 1
_NONE: Final = type(None)
_CALLER: Final = struct.Struct(">BBQQ32s16s32s48s")

_UNIT_AT: Final = 5  # of a trailer's fields


def _require(condition: bool, what: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not condition:
        raise cbor.CborError(what)


def _check_model(
    model: str | None, version: int | None, digest: bytes | None, *, named: bool
) -> None:
    _require(model is not None or not named, "model is missing")
    if model is not None:
        _require(1 <= len(model.encode()) <= limits.NAME_MAX, "model name out of bounds")
    _require(version is None or 1 <= version <= _U32_MAX, "version out of bounds")
    _require(digest is None or len(digest) == wire.HASH_BYTES, "digest has a wrong length")


@dataclass(frozen=True, slots=True)
class Preamble:
    """Which model a request is for, and who asks (SPEC 5.6).

    ``sealed_data`` is ``H(m)`` of the object that is the message in place of tensors (SPEC 8.7);
    ``receipt`` asks for a signed receipt of the answer (SPEC 14). ``operation``: run the model, or
    tell its inputs and outputs (SPEC 5.6.1).
    """

    model: str
    version: int | None = None
    digest: bytes | None = None
    caller: bytes | None = None
    signature: bytes | None = None
    sealed_data: bytes | None = None
    receipt: bool = False
    operation: str = INFER

    def _check(self) -> None:
        _check_model(self.model, self.version, self.digest, named=True)
        named = self.sealed_data is None or len(self.sealed_data) == wire.HASH_BYTES
        _require(named, "object has a wrong length")
        _require(self.operation in OPERATIONS, "unknown operation")
        plain = self.sealed_data is None and not self.receipt
        _require(self.operation == INFER or plain, "an object or a receipt without inference")
        _require((self.caller is None) == (self.signature is None), "caller without signature")
        if self.caller is not None and self.signature is not None:
            _require(len(self.caller) == CALLER_BYTES, "caller has a wrong length")
            _require(len(self.signature) == SIGNATURE_BYTES, "signature has a wrong length")

    def encode(self) -> bytes:
        """Return the CBOR map; raises EnvelopeError (INVALID_ARGUMENT) for values out of bounds."""
        try:
            self._check()
        except cbor.CborError as error:
            raise EnvelopeError(Code.INVALID_ARGUMENT, str(error)) from None
        return cbor.encode(
            {
                "v": VERSION,
                "model": self.model,
                "version": self.version,
                "digest": self.digest,
                "caller": self.caller,
                "signature": self.signature,
                "object": self.sealed_data,
                "receipt": self.receipt,
                "operation": self.operation,
            }
        )

    @classmethod
    def parse(cls, data: wire.Buffer) -> Preamble:
        """Parse the CBOR map; raises EnvelopeError (INVALID_REQUEST), a sealed status."""
        kinds: dict[str, type | tuple[type, ...]] = {
            "v": int,
            "model": str,
            "version": (int, _NONE),
            "digest": (bytes, _NONE),
            "caller": (bytes, _NONE),
            "signature": (bytes, _NONE),
            "object": (bytes, _NONE),
            "receipt": bool,
            "operation": str,
        }
        try:
            _require(len(data) <= limits.PREAMBLE_MAX, "too long")
            fields = cbor.decode_map(bytes(data), kinds)
            _require(fields.pop("v") == VERSION, "unknown version")
            preamble = cls(sealed_data=fields.pop("object"), **fields)
            preamble._check()
        except cbor.CborError as error:
            raise EnvelopeError(Code.INVALID_REQUEST, f"preamble: {error}") from None
        return preamble


class Trailer(NamedTuple):
    """How a request ended; ``status`` is one of ``SEALED_STATUSES`` (SPEC 5.7, 11.2).

    ``unit`` and ``final`` are those of streams (SPEC 5.9): which question this answers, and whether
    nothing more of its answer follows. ``receipt`` and its blinders come together, and only with
    the status OK (SPEC 14). ``questions``: how many one request for this model may hold
    (SPEC 5.10), None where no model is named.
    """

    status: Code
    detail: str = ""
    model: str | None = None
    version: int | None = None
    digest: bytes | None = None
    unit: int = 0
    final: bool = True
    receipt: bytes | None = None
    question_blinder: bytes | None = None
    answer_blinder: bytes | None = None
    questions: int | None = None

    def __repr__(self) -> str:
        return f"<Trailer: {self.status}>"

    def _check(self) -> None:
        _require(self.status in SEALED_STATUSES, "not a sealed status")
        _require(self.unit <= _U32_MAX, "unit out of bounds")
        _require(self.final or self.status is Code.OK, "a refusal that is not the end")
        _check_model(self.model, self.version, self.digest, named=False)
        within = self.questions is None or 1 <= self.questions <= limits.QUESTIONS_MAX
        _require(within, "questions out of bounds")
        if self.receipt is None:
            _require(self.question_blinder is self.answer_blinder is None, "blinders alone")
            return
        _require(self.status is Code.OK and self.final, "a receipt without an answer")
        _require(1 <= len(self.receipt) <= limits.RECEIPT_MAX, "receipt out of bounds")
        for blinder in (self.question_blinder, self.answer_blinder):
            _require(blinder is not None and len(blinder) == BLINDER_BYTES, "not a blinder")

    def encode(self) -> bytes:
        """Return the CBOR map, ``detail`` cut to its bound; raises ValueError if out of bounds."""
        status, detail, model, version, digest, unit, final, *receipt, questions = self
        if status is not Code.OK or detail or receipt != _NO_RECEIPT:
            return self._encode()
        end = _plain_end(model, version, digest, final, questions)
        if not unit:
            return _BEFORE_UNIT + _UNIT_0 + end
        _require(0 <= unit <= _U32_MAX, "unit out of bounds")
        return _BEFORE_UNIT + cbor.encode_uint(unit) + end

    def _encode(self) -> bytes:
        self._check()
        return cbor.encode(
            {
                "v": VERSION,
                "status": str(self.status),
                "detail": self.detail.encode()[: limits.DETAIL_MAX].decode(errors="ignore"),
                "model": self.model,
                "version": self.version,
                "digest": self.digest,
                "unit": self.unit,
                "final": self.final,
                "receipt": self.receipt,
                "question_blinder": self.question_blinder,
                "answer_blinder": self.answer_blinder,
                "questions": self.questions,
            }
        )

    @classmethod
    def parse(cls, data: wire.Buffer) -> Trailer:
        """Parse the CBOR map; raises EnvelopeError (ANSWER_OPEN_FAILED)."""
        encoded = bytes(data)
        if len(encoded) > _PLAIN_MAX or not encoded.startswith(_BEFORE_UNIT):
            return cls._parse(encoded)
        try:
            unit, end = cbor.read_uint(encoded, len(_BEFORE_UNIT))
        except ValueError:
            raise answer_open_failed() from None
        if unit > _U32_MAX:
            raise answer_open_failed()
        return _parse_plain(encoded[end:]).of_unit(unit)

    def of_unit(self, unit: int) -> Trailer:
        """Return this trailer of another unit."""
        if unit == self.unit:
            return self
        return Trailer._make((*self[:_UNIT_AT], unit, *self[_UNIT_AT + 1 :]))

    @classmethod
    def _parse(cls, data: bytes) -> Trailer:
        kinds: dict[str, type | tuple[type, ...]] = {
            "v": int,
            "status": str,
            "detail": str,
            "model": (str, _NONE),
            "version": (int, _NONE),
            "digest": (bytes, _NONE),
            "unit": int,
            "final": bool,
            "receipt": (bytes, _NONE),
            "question_blinder": (bytes, _NONE),
            "answer_blinder": (bytes, _NONE),
            "questions": (int, _NONE),
        }
        try:
            _require(len(data) <= limits.TRAILER_MAX, "too long")
            fields = cbor.decode_map(data, kinds)
            _require(fields.pop("v") == VERSION, "unknown version")
            trailer = cls(Code(fields.pop("status")), **fields)
            _require(len(trailer.detail.encode()) <= limits.DETAIL_MAX, "detail out of bounds")
            trailer._check()
        except ValueError:
            raise answer_open_failed() from None
        return trailer


@functools.lru_cache(maxsize=256)
def _plain_end(
    model: str | None,
    version: int | None,
    digest: bytes | None,
    final: bool,  # noqa: FBT001 - cached by it
    questions: int | None,
) -> bytes:
    """Return what follows the unit in a good answer's trailer.

    A model's good answers nearly all end alike, and nothing in this is a secret.
    """
    trailer = Trailer(Code.OK, "", model, version, digest, final=final, questions=questions)
    whole = trailer._encode()  # noqa: SLF001 - of this module
    return whole[len(_BEFORE_UNIT) + len(_UNIT_0) :]


@functools.lru_cache(maxsize=256)
def _parse_plain(end: bytes) -> Trailer:
    """Read a short trailer of unit 0 by what follows the unit; remembered as ``_plain_end`` is."""
    return Trailer._parse(_BEFORE_UNIT + _UNIT_0 + end)  # noqa: SLF001 - of this module


def caller_statement(header: RequestHeader) -> bytes:
    """Return what a caller signs once for a session (SPEC 5.6)."""
    return wire.label("caller") + wire.lp(
        _CALLER.pack(
            VERSION,
            header.key_mode,
            header.not_before,
            header.not_after,
            header.audience,
            header.instance_id,
            header.key_commitment,
            wire.digest(header.wrapped_key),
        )
    )
