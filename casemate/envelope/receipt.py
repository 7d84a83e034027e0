"""What a receipt says, its one encoding, and its hashes (SPEC 14.1 to 14.3)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from casemate import cbor, wire
from casemate.errors import Code, ReceiptError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VERSION: Final = 1
BLINDER_BYTES: Final = 32

_PROTECTED: Final = bytes.fromhex("a10127")  # {1: -8}: EdDSA
_SIGNATURE_BYTES: Final = 64
_NAME_MAX: Final = 128  # a model's name (SPEC 8.2)
_U32_MAX: Final = (1 << 32) - 1
_TYPES: Final = (int, bytes, str, int, bytes, bytes, bytes, bytes, int)
_LENGTH: Final = struct.Struct(">I")


def _require(condition: bool, what: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not condition:
        raise ReceiptError(Code.RECEIPT_MALFORMED, f"receipt: {what}")


@dataclass(frozen=True, slots=True)
class ReceiptStatement:
    """That an instance answered a question with an answer, and when (SPEC 14.2).

    ``instance_digest`` is H(instance_config), ``digest`` the model's, ``request_digest`` ``th``:
    48 bytes each, as are the two blinded hashes; ``time`` in milliseconds of attested time.
    """

    instance_digest: bytes
    model: str
    version: int
    digest: bytes
    request_digest: bytes
    question_hash: bytes
    answer_hash: bytes
    time: int

    def __post_init__(self) -> None:
        for value in (self.instance_digest, self.digest, self.request_digest):
            _require(len(value) == wire.HASH_BYTES, "a digest has a wrong length")
        for value in (self.question_hash, self.answer_hash):
            _require(len(value) == wire.HASH_BYTES, "a hash has a wrong length")
        _require(1 <= len(self.model.encode()) <= _NAME_MAX, "model name out of bounds")
        _require(1 <= self.version <= _U32_MAX, "version out of bounds")

    def encode(self) -> bytes:
        """Return the payload of SPEC 14.2."""
        return cbor.encode([VERSION, *(getattr(self, name) for name in self.__slots__)])

    @classmethod
    def parse(cls, payload: bytes) -> ReceiptStatement:
        """Parse a payload; raises ReceiptError (RECEIPT_MALFORMED)."""
        values = _decoded(payload)
        _require([type(value) for value in values] == [*_TYPES], "not the items of a receipt")
        version, *fields = values
        _require(version == VERSION, "unknown version")
        return cls(*fields)


@dataclass(frozen=True, slots=True)
class UnverifiedReceipt:
    """A receipt as it was read. What it says is believed once ``check_signature`` returned."""

    statement: ReceiptStatement
    payload: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> UnverifiedReceipt:
        """Parse the one encoding of SPEC 14.1; raises ReceiptError (RECEIPT_MALFORMED)."""
        items = _decoded(data)
        kinds = [type(item) for item in items]
        _require(kinds == [bytes, dict, bytes, bytes], "not a COSE_Sign1")
        protected, unprotected, payload, signature = items
        _require(protected == _PROTECTED and not unprotected, "not signed as SPEC 14.1 says")
        _require(len(signature) == _SIGNATURE_BYTES, "signature has a wrong length")
        return cls(ReceiptStatement.parse(payload), payload, signature)

    def check_signature(self, receipt_key: bytes) -> None:
        """Raise ReceiptError (RECEIPT_SIGNATURE) unless ``receipt_key`` signed this receipt."""
        try:
            key = Ed25519PublicKey.from_public_bytes(receipt_key)
            key.verify(self.signature, signed_bytes(self.payload))
        except (InvalidSignature, ValueError):
            detail = "the instance's receipt key did not sign this receipt"
            raise ReceiptError(Code.RECEIPT_SIGNATURE, detail) from None


def sign_receipt(key: Ed25519PrivateKey, statement: ReceiptStatement) -> bytes:
    """Return the receipt (SPEC 14.1). Only an enclave has a key that anybody believes."""
    payload = statement.encode()
    return cbor.encode([_PROTECTED, {}, payload, key.sign(signed_bytes(payload))])


def signed_bytes(payload: bytes) -> bytes:
    """Return the Sig_structure over a payload (SPEC 14.1)."""
    return cbor.encode(["Signature1", _PROTECTED, wire.label("receipt"), payload])


class BlindedHash:
    """The hash of a question or of an answer, message by message (SPEC 14.3)."""

    def __init__(self, kind: str, blinder: bytes) -> None:
        """Start a hash of ``kind`` ``question`` or ``answer`` with its 32-byte ``blinder``."""
        self._state = hashlib.sha384(wire.label(kind) + blinder)

    def add(self, *message: wire.Buffer) -> BlindedHash:
        """Take the next message in, which may lie in several pieces."""
        self._state.update(_LENGTH.pack(sum(map(len, message))))
        for piece in message:
            self._state.update(piece)
        return self

    def digest(self) -> bytes:
        """Return the 48 bytes that a receipt has."""
        return self._state.digest()


def _decoded(data: bytes) -> list[cbor.Value]:
    try:
        items = cbor.decode(data)
    except cbor.CborError as error:
        raise ReceiptError(Code.RECEIPT_MALFORMED, f"receipt: {error}") from None
    _require(isinstance(items, list), "not an array")
    return list(items)
