"""Stored receipts that verify, made as an enclave and its client would, and parts to spoil."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from casemate import wire
from casemate.attestation import audience_hash
from casemate.envelope.header import KEY_MODE_KMS, RequestHeader
from casemate.envelope.receipt import ReceiptStatement, sign_receipt
from casemate.receipts import Shown, StoredReceipt
from tests.support import evidence as made
from tests.support.nitro_pki import NOW

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from casemate.attestation import EvidenceBundle

ARN = b"arn:aws:kms:eu-central-1:111122223333:key/01234567-89ab-cdef-0123-456789abcdef"
HEADER = RequestHeader(
    key_mode=KEY_MODE_KMS,
    request_id=b"r" * 16,
    sequence=3,
    not_before=NOW,
    not_after=NOW + 300_000,
    audience=audience_hash(made.AUDIENCE),
    instance_id=made.INSTANCE.instance_id,
    key_commitment=b"c" * 32,
    wrapped_key=wire.lp(ARN) + b"blob",
)
QUESTION = Shown(b"q" * 32, (b"a question",))
ANSWER = Shown(b"a" * 32, (b"an answer", b"its second piece"))
TIME = NOW + 1000


def statement(**changes: object) -> ReceiptStatement:
    said = ReceiptStatement(
        instance_digest=wire.digest(made.INSTANCE.encode()),
        model=made.LOADED.name,
        version=made.LOADED.version,
        digest=made.LOADED.digest,
        request_digest=wire.digest(HEADER.encode()),
        question_hash=QUESTION.hash("question"),
        answer_hash=ANSWER.hash("answer"),
        time=TIME,
    )
    return replace(said, **changes)  # type: ignore[arg-type]


def stored(
    *,
    said: ReceiptStatement | None = None,
    key: Ed25519PrivateKey = made.RECEIPTS,
    bundle: EvidenceBundle | None = None,
    header: RequestHeader = HEADER,
) -> StoredReceipt:
    return StoredReceipt(
        receipt=sign_receipt(key, said or statement()),
        evidence=(bundle or made.good()).serialize(),
        header=header.encode(),
        question=QUESTION,
        answer=ANSWER,
    )
