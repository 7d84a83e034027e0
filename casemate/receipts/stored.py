"""Receipts in files, with the evidence that they are judged by (SPEC 14.4)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from casemate import cbor, limits
from casemate.envelope.receipt import BLINDER_BYTES, BlindedHash, UnverifiedReceipt
from casemate.errors import Code, ReceiptError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAGIC: Final = b"CASERCT1"
VERSION: Final = 1
_NONE: Final = type(None)
_FIELDS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "v": int,
    "receipt": bytes,
    "evidence": bytes,
    "header": bytes,
    "question": (dict, _NONE),
    "answer": (dict, _NONE),
}


def _require(condition: bool, what: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not condition:
        raise ReceiptError(Code.RECEIPT_MALFORMED, f"receipt: {what}")


@dataclass(frozen=True, slots=True)
class Shown:
    """A question or an answer in the clear, with the 32-byte blinder of its hash.

    A question is one message, a ``ModelInferRequest`` or sealed data; an answer is one or more
    ``ModelInferResponse``.
    """

    blinder: bytes = field(repr=False)
    messages: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        _require(len(self.blinder) == BLINDER_BYTES, "blinder has a wrong length")
        _require(1 <= len(self.messages) <= limits.CBOR_ITEMS, "number of messages out of bounds")

    def hash(self, kind: str) -> bytes:
        """Return the blinded hash as ``kind``, ``question`` or ``answer`` (SPEC 14.3)."""
        blinded = BlindedHash(kind, self.blinder)
        for message in self.messages:
            blinded.add(message)
        return blinded.digest()

    def _encode(self) -> dict[str, cbor.Value]:
        return {"blinder": self.blinder, "messages": self.messages}

    @classmethod
    def _parse(cls, value: cbor.Value) -> Shown | None:
        if value is None:
            return None
        fields = cbor.fields(value, {"blinder": bytes, "messages": list})
        _require({type(message) for message in fields["messages"]} <= {bytes}, "not messages")
        return cls(fields["blinder"], tuple(fields["messages"]))


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A receipt with what it takes to judge it later; nothing of it is verified yet.

    ``evidence`` is an ``Evidence`` protobuf of the instance, ``header`` the request's. ``question``
    and ``answer`` are shown or not: whoever has the file reads what is shown in it.
    """

    receipt: bytes
    evidence: bytes = field(repr=False)
    header: bytes = field(repr=False)
    question: Shown | None = None
    answer: Shown | None = None

    def showing(self, *, question: bool, answer: bool) -> StoredReceipt:
        """Return the same receipt without the question, the answer, or either."""
        return replace(
            self,
            question=self.question if question else None,
            answer=self.answer if answer else None,
        )

    @property
    def unverified(self) -> UnverifiedReceipt:
        """The receipt itself, taken apart; raises ReceiptError (RECEIPT_MALFORMED)."""
        return UnverifiedReceipt.parse(self.receipt)

    def encode(self) -> bytes:
        """Return the file's content."""
        shown = {
            name: part and part._encode()  # noqa: SLF001 - of this module
            for name, part in (("question", self.question), ("answer", self.answer))
        }
        fields = {"receipt": self.receipt, "evidence": self.evidence, "header": self.header}
        return MAGIC + cbor.encode({"v": VERSION, **fields, **shown})

    @classmethod
    def parse(cls, data: bytes) -> StoredReceipt:
        """Parse a file's content; raises ReceiptError (RECEIPT_MALFORMED)."""
        _require(data.startswith(MAGIC), "not a receipt of Casemate's")
        try:
            fields = cbor.decode_map(data[len(MAGIC) :], _FIELDS)
            _require(fields.pop("v") == VERSION, "unknown version")
            for name in ("question", "answer"):
                fields[name] = Shown._parse(fields[name])  # noqa: SLF001 - of this module
        except cbor.CborError as error:
            raise ReceiptError(Code.RECEIPT_MALFORMED, f"receipt: {error}") from None
        stored = cls(**fields)
        one = stored.question is None or len(stored.question.messages) == 1
        _require(one, "a question has one message")
        return stored
