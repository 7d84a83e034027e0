"""Signs receipts with the key that evidence binds to this instance (SPEC 3.4, 14)."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.envelope.guard import Guarded
from casemate.envelope.receipt import (
    BLINDER_BYTES,
    BlindedHash,
    ReceiptStatement,
    sign_receipt,
)

if TYPE_CHECKING:
    from casemate.envelope.messages import Trailer
    from casemate.wire import Buffer, Pieces
    from casemate_enclave.clock import AttestedClock
    from casemate_enclave.identity import Identity
    from casemate_enclave.registry import ServedModel


@final
class ReceiptKey(Guarded):
    """This boot's receipt key, Ed25519. It never leaves the process."""

    __slots__ = ("_private", "public_bytes")

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.public_bytes = self._private.public_key().public_bytes_raw()

    def sign(self, statement: ReceiptStatement) -> bytes:
        """Return the receipt that says ``statement``."""
        return sign_receipt(self._private, statement)


@dataclass(frozen=True, slots=True)
class BlindedReceipt:
    """A receipt with what only the client gets to know."""

    receipt: bytes = field(repr=False)
    question_blinder: bytes = field(repr=False)
    answer_blinder: bytes = field(repr=False)

    def within(self, trailer: Trailer) -> Trailer:
        """Return ``trailer`` with this receipt."""
        return trailer._replace(
            receipt=self.receipt,
            question_blinder=self.question_blinder,
            answer_blinder=self.answer_blinder,
        )


class ReceiptDraft:
    """The hashes of one question and of its answer, which may come message by message."""

    def __init__(self, question: Buffer) -> None:
        self.blinders = secrets.token_bytes(BLINDER_BYTES), secrets.token_bytes(BLINDER_BYTES)
        self.question = BlindedHash("question", self.blinders[0]).add(question)
        self.answer = BlindedHash("answer", self.blinders[1])

    def add(self, *message: Buffer) -> None:
        """Take the next message of the answer in; it may lie in several pieces."""
        self.answer.add(*message)


class ReceiptIssuer:
    """Issues receipts for answers of this instance; thread-safe."""

    def __init__(self, key: ReceiptKey, identity: Identity, clock: AttestedClock) -> None:
        self._key = key
        self._identity = identity
        self._clock = clock

    def issue(
        self, model: ServedModel, request_digest: bytes, question: Buffer, answer: Pieces
    ) -> BlindedReceipt:
        """Sign for messages as they were opened and will be sealed.

        Raises CasemateError (CLOCK_UNAVAILABLE).
        """
        draft = self.draft(question)
        draft.add(*answer)
        return self.sign(draft, model, request_digest)

    def draft(self, question: Buffer) -> ReceiptDraft:
        """Begin a receipt before there is an answer."""
        return ReceiptDraft(question)

    def sign(
        self, draft: ReceiptDraft, model: ServedModel, request_digest: bytes
    ) -> BlindedReceipt:
        """Sign for the answers that ``draft`` has seen; raises as ``issue``."""
        statement = ReceiptStatement(
            instance_digest=self._identity.instance_digest,
            model=model.header.name,
            version=model.header.version,
            digest=model.digest,
            request_digest=request_digest,
            question_hash=draft.question.digest(),
            answer_hash=draft.answer.digest(),
            time=self._clock.now(),
        )
        return BlindedReceipt(self._key.sign(statement), *draft.blinders)
