"""Receipts from a whole enclave: signed by the key that its evidence binds (SPEC 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casemate import wire
from casemate.envelope.receipt import BlindedHash, UnverifiedReceipt
from casemate.errors import Code
from casemate.tensors import to_request
from tests.support.enclave_bench import ROWS, Bench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.envelope.sealing import OpenedAnswer, SealedCall

QUESTION = to_request({"x": ROWS})


@pytest.fixture(scope="module")
def served() -> Iterator[Bench]:
    with Bench() as bench:
        bench.serve()
        yield bench


def ask(served: Bench, message: bytes = QUESTION) -> tuple[SealedCall, OpenedAnswer]:
    call = served.session().seal(
        model="linear", version=2, digest=None, message=message, receipt=True
    )
    return call, served.send(call)


def test_a_receipt_binds_instance_model_request_question_answer_and_time(served: Bench) -> None:
    evidence = served.verify(b"n" * 32)
    call, answer = ask(served)
    trailer, message = answer.trailer, answer.message
    assert trailer.receipt
    assert trailer.question_blinder
    assert trailer.answer_blinder
    assert message
    receipt = UnverifiedReceipt.parse(trailer.receipt)
    receipt.check_signature(evidence.instance.receipt_key)
    said = receipt.statement
    assert said.instance_digest == evidence.instance_digest == answer.instance_digest
    assert (said.model, said.version, said.digest) == ("linear", 2, trailer.digest)
    assert said.request_digest == wire.digest(call.header)
    question = BlindedHash("question", trailer.question_blinder).add(QUESTION)
    assert said.question_hash == question.digest()
    assert said.answer_hash == BlindedHash("answer", trailer.answer_blinder).add(message).digest()
    assert evidence.instance.boot_time <= said.time <= served.clock() * 1000 + 1000


def test_two_receipts_of_one_question_have_nothing_in_common(served: Bench) -> None:
    first, second = (
        UnverifiedReceipt.parse(ask(served)[1].trailer.receipt or b"").statement for _ in range(2)
    )
    assert first.question_hash != second.question_hash
    assert first.answer_hash != second.answer_hash


def test_a_refusal_has_no_receipt(served: Bench) -> None:
    _, refused = ask(served, to_request({"z": ROWS}))
    assert refused.trailer.status == Code.INVALID_INPUT
    assert refused.trailer.receipt is None
