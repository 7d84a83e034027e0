"""Receipts under attack (THREATS.md: C12), from a real enclave through a real host."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate import wire
from casemate.attestation import EvidenceBundle
from casemate.envelope.header import parse_request_header
from casemate.envelope.receipt import sign_receipt
from casemate.errors import CasemateError, Code
from casemate.receipts import Shown, StoredReceipt, verify_receipt
from casemate.tensors import from_response
from casemate_devkit.local import MODEL
from tests.support import evidence as made
from tests.support import receipts as rc
from tests.support.attacker import ROWS, now_ms

if TYPE_CHECKING:
    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
ONE_ROW = {"features": ROWS[:1]}


def kept(clinic: Client) -> StoredReceipt:
    """The receipt of a single class label: a question with two possible answers."""
    result = clinic.infer(MODEL, ONE_ROW, version=1, outputs=["label"], receipt=True)
    assert result.receipt is not None
    return StoredReceipt.parse(result.receipt.encode())


def refusal(stored: StoredReceipt, deployment: LocalDeployment, at: int | None = None) -> Code:
    with pytest.raises(CasemateError) as caught:
        verify_receipt(stored, deployment.trust_policy(), at=at or now_ms())
    return caught.value.code


def test_c12_a_receipt_holds_offline_against_the_stored_evidence(
    clinic: Client, deployment: LocalDeployment
) -> None:
    stored = kept(clinic)
    verified = verify_receipt(
        stored, deployment.trust_policy(), at=stored.unverified.statement.time
    )
    assert verified.answer is not None
    assert set(from_response(memoryview(verified.answer.messages[0]))) == {"label"}
    assert verified.statement.model == MODEL


def test_c12_a_class_label_cannot_be_guessed_from_the_answers_hash(clinic: Client) -> None:
    """The attacker has the receipt, the question, and every message that could be the answer."""
    first, second = kept(clinic), kept(clinic)
    assert first.answer is not None
    assert second.answer is not None
    (message,) = first.answer.messages
    assert second.answer.messages == (message,)  # the same question, and the same answer
    label = from_response(memoryview(message))["label"]
    place = message.rindex(label.tobytes())
    flipped = message[:place] + (1 - label).tobytes() + message[place + label.nbytes :]
    said = first.unverified.statement
    public = (b"", bytes(32), said.request_digest[:32], said.instance_digest[:32])
    guesses = {
        hashlib.sha384(b"casemate/v1 answer\0" + blinder + wire.lp(candidate)).digest()
        for blinder in (*public, second.answer.blinder)
        for candidate in (message, flipped)
    }
    assert said.answer_hash not in guesses
    assert said.answer_hash != second.unverified.statement.answer_hash
    # With the blinder, which the answer's owner alone has, it is a matter of trying both.
    assert Shown(first.answer.blinder, (message,)).hash("answer") == said.answer_hash
    assert Shown(first.answer.blinder, (flipped,)).hash("answer") != said.answer_hash


def test_c12_no_boundary_can_be_moved(clinic: Client, deployment: LocalDeployment) -> None:
    """Between pieces of an answer, between header and ciphertext, between question and answer."""
    stored = kept(clinic)
    assert stored.question is not None
    assert stored.answer is not None
    (message,) = stored.answer.messages
    for cut in (1, len(message) // 2, len(message) - 1):
        answer = replace(stored.answer, messages=(message[:cut], message[cut:]))
        assert refusal(replace(stored, answer=answer), deployment) is Code.RECEIPT_ANSWER
    longer = replace(stored.question, messages=(stored.question.messages[0] + message,))
    assert refusal(replace(stored, question=longer), deployment) is Code.RECEIPT_QUESTION
    swapped = replace(stored, question=stored.answer, answer=stored.question)
    assert refusal(swapped, deployment) is Code.RECEIPT_QUESTION
    for header in (stored.header[:-1], stored.header + b"\0"):
        assert refusal(replace(stored, header=header), deployment) is Code.RECEIPT_MALFORMED
    # A header of the right form around other bytes of the same exchange.
    parsed = parse_request_header(stored.header)
    moved = replace(parsed, wrapped_key=parsed.wrapped_key[1:] + b"\0").encode()
    assert refusal(replace(stored, header=moved), deployment) is Code.RECEIPT_REQUEST


def test_c12_receipts_are_not_moved_between_requests_instances_or_models(
    clinic: Client, deployment: LocalDeployment
) -> None:
    first, second = kept(clinic), kept(clinic)
    assert refusal(replace(first, header=second.header), deployment) is Code.RECEIPT_REQUEST
    assert refusal(replace(first, receipt=second.receipt), deployment) is Code.RECEIPT_REQUEST
    other = replace(first, header=second.header, receipt=second.receipt)
    assert refusal(other, deployment) is Code.RECEIPT_QUESTION  # its blinder is another
    # The host signs what it likes, with a key of its own and the enclave's genuine evidence.
    said = replace(first.unverified.statement, answer_hash=b"\xee" * 48)
    forged = replace(first, receipt=sign_receipt(Ed25519PrivateKey.generate(), said))
    assert refusal(forged, deployment) is Code.RECEIPT_SIGNATURE
    bundle = EvidenceBundle.parse(first.evidence)
    mine = made.INSTANCE.encode()
    spliced = replace(first, evidence=replace(bundle, instance_config=mine).serialize())
    assert refusal(spliced, deployment) is Code.EVIDENCE_BINDING


@pytest.mark.parametrize("years", [-1, 1])
def test_c12_a_leaked_key_signs_for_no_time_but_the_instances_own(years: int) -> None:
    """Whoever has the receipt key of an instance: what is left to it is stated (SPEC 14.6)."""
    policy = made.policy()
    year = 365 * 86_400_000
    forged = rc.stored(said=rc.statement(time=rc.TIME + years * year))
    with pytest.raises(CasemateError) as caught:
        verify_receipt(forged, policy, at=rc.TIME)
    assert caught.value.code is Code.RECEIPT_TIME
    # And judged as of the forged time, it is the evidence that is of another time.
    with pytest.raises(CasemateError) as caught:
        verify_receipt(forged, policy, at=rc.TIME + years * year)
    assert caught.value.code in {Code.EVIDENCE_CHAIN, Code.EVIDENCE_AGE}
    within = rc.stored(said=rc.statement(time=rc.TIME + 60_000))
    assert verify_receipt(within, policy, at=rc.TIME).statement.time == rc.TIME + 60_000
