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
    from casemate.wire import Buffer
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


class ReceiptIssuer:
    """Issues receipts for answers of this instance; thread-safe."""

    def __init__(self, key: ReceiptKey, identity: Identity, clock: AttestedClock) -> None:
        self._key = key
        self._identity = identity
        self._clock = clock

    def issue(
        self, model: ServedModel, request_digest: bytes, question: Buffer, *answers: Buffer
    ) -> BlindedReceipt:
        """Sign for messages as they were opened and will be sealed.

        Raises CasemateError (CLOCK_UNAVAILABLE).
        """
        blinders = secrets.token_bytes(BLINDER_BYTES), secrets.token_bytes(BLINDER_BYTES)
        answered = BlindedHash("answer", blinders[1])
        for message in answers:
            answered.add(message)
        statement = ReceiptStatement(
            instance_digest=self._identity.instance_digest,
            model=model.header.name,
            version=model.header.version,
            digest=model.digest,
            request_digest=request_digest,
            question_hash=BlindedHash("question", blinders[0]).add(question).digest(),
            answer_hash=answered.digest(),
            time=self._clock.now(),
        )
        return BlindedReceipt(self._key.sign(statement), *blinders)
