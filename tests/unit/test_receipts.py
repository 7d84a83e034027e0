"""Receipts: one encoding, blinded hashes, and the steps by which one is judged (SPEC 14)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from casemate import cbor, limits
from casemate.attestation import AllowedModel, InstanceConfig, encode_log
from casemate.envelope.header import ANY_INSTANCE
from casemate.envelope.receipt import UnverifiedReceipt, sign_receipt
from casemate.errors import CasemateError, Code, ReceiptError
from casemate.receipts import STEPS, Shown, StoredReceipt, VerifiedReceipt, verify_receipt
from casemate.wire import digest
from tests.support import evidence as made
from tests.support import receipts as rc
from tests.support.nitro_pki import NOW

if TYPE_CHECKING:
    from casemate.attestation import Step, TrustPolicy

GOOD = rc.stored()
RECEIPT = GOOD.receipt
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x33" * 32)
LIFETIME = made.CONFIGURATION.limits.lifetime


def judge(
    stored: StoredReceipt, policy: TrustPolicy | None = None, at: int = rc.TIME
) -> VerifiedReceipt:
    return verify_receipt(stored, policy or made.policy(), at=at)


def refusal(stored: StoredReceipt, policy: TrustPolicy | None = None, at: int = rc.TIME) -> Code:
    with pytest.raises(CasemateError) as caught:
        judge(stored, policy, at)
    return caught.value.code


def test_a_good_one_passes_every_step_offline() -> None:
    steps: list[Step] = []
    inner: list[Step] = []
    verified = verify_receipt(
        StoredReceipt.parse(GOOD.encode()),
        made.policy(),
        at=rc.TIME,
        observe=steps.append,
        observe_evidence=inner.append,
    )
    assert [(step.number, step.name) for step in steps] == [
        (number, name) for number, (name, _) in STEPS.items()
    ]
    assert {step.outcome for step in steps} == {"passed"}
    assert [step.number for step in inner] == list(range(1, 19))
    assert inner[9].outcome == "skipped"  # nobody has the nonce any more
    assert verified.statement == rc.statement()
    assert (verified.question, verified.answer) == (rc.QUESTION, rc.ANSWER)
    assert verified.evidence.release == made.RELEASE.name


@pytest.mark.parametrize("question", [True, False])
@pytest.mark.parametrize("answer", [True, False])
def test_question_and_answer_are_shown_apart(question: bool, answer: bool) -> None:
    shown = GOOD.showing(question=question, answer=answer)
    again = StoredReceipt.parse(shown.encode())
    assert (again.question is not None, again.answer is not None) == (question, answer)
    steps: list[Step] = []
    verify_receipt(again, made.policy(), at=rc.TIME, observe=steps.append)
    outcomes = [step.outcome for step in steps[7:]]
    assert outcomes == ["passed" if part else "skipped" for part in (question, answer)]
    hidden = [part for part, seen in ((rc.QUESTION, question), (rc.ANSWER, answer)) if not seen]
    for part in hidden:
        assert part.blinder not in shown.encode()
        assert part.messages[0] not in shown.encode()


# Step 1

EMPTY: list[object] = [None, False, 0, b"", "", []]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x84",
        RECEIPT + b"\0",
        b"\xd2" + RECEIPT,  # tag 18
        cbor.encode([b"\xa1\x01\x27", {}, rc.statement().encode()]),
        cbor.encode([b"\xa1\x01\x26", {}, rc.statement().encode(), b"s" * 64]),
        cbor.encode([b"", {"alg": 1}, rc.statement().encode(), b"s" * 64]),
        cbor.encode([b"\xa1\x01\x27", {"kid": b"x"}, rc.statement().encode(), b"s" * 64]),
        cbor.encode([b"\xa1\x01\x27", {}, rc.statement().encode(), b"s" * 63]),
        cbor.encode([b"\xa1\x01\x27", {}, None, b"s" * 64]),
        *(
            cbor.encode([b"\xa1\x01\x27", empty, rc.statement().encode(), b"s" * 64])
            for empty in EMPTY
        ),
        cbor.encode([b"\xa1\x01\x27", {}, b"", b"s" * 64]),
        cbor.encode([b"\xa1\x01\x27", {}, rc.statement().encode() + b"\0", b"s" * 64]),
        cbor.encode([b"\xa1\x01\x27", {}, b"x" * 600, b"s" * 64]),
    ],
)
def test_a_receipt_has_one_form(data: bytes) -> None:
    with pytest.raises(ReceiptError) as caught:
        UnverifiedReceipt.parse(data)
    assert caught.value.code is Code.RECEIPT_MALFORMED


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 2),
        (1, b"d" * 47),
        (2, ""),
        (2, "n" * 129),
        (3, 0),
        (3, 1 << 32),
        (3, True),
        (4, b""),
        (5, b"t" * 49),
        (6, b"q" * 32),
        (7, b"a" * 32),
        (8, "now"),
        (8, None),
    ],
)
def test_what_a_receipt_says_is_bounded(index: int, value: object) -> None:
    items = cbor.decode(rc.statement().encode())
    items[index] = value
    payload = cbor.encode(items)
    receipt = cbor.encode([b"\xa1\x01\x27", {}, payload, OTHER.sign(payload)])
    assert refusal(replace(GOOD, receipt=receipt)) is Code.RECEIPT_MALFORMED
    shorter = cbor.encode([b"\xa1\x01\x27", {}, cbor.encode(items[:-1]), b"s" * 64])
    assert refusal(replace(GOOD, receipt=shorter)) is Code.RECEIPT_MALFORMED


@given(st.integers(0, len(RECEIPT) * 8 - 1))
def test_no_bit_of_a_receipt_can_be_changed(bit: int) -> None:
    spoilt = bytearray(RECEIPT)
    spoilt[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ReceiptError):
        UnverifiedReceipt.parse(bytes(spoilt)).check_signature(made.RECEIPT_KEY)


@given(st.binary(max_size=200))
def test_a_file_has_one_encoding(data: bytes) -> None:
    for candidate in (data, b"CASERCT1" + data):
        try:
            stored = StoredReceipt.parse(candidate)
        except ReceiptError as error:
            assert error.code is Code.RECEIPT_MALFORMED  # noqa: PT017 - most examples are refused
            continue
        assert stored.encode() == candidate


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"more": None},
        {"receipt": None},
        {"header": "text"},
        {"question": b"q"},
        {"question": {"blinder": b"q" * 32}},
        {"question": {"blinder": b"q" * 31, "messages": [b"m"]}},
        {"question": {"blinder": b"q" * 32, "messages": []}},
        {"question": {"blinder": b"q" * 32, "messages": [b"m", b"n"]}},
        {"answer": {"blinder": b"q" * 32, "messages": []}},
        {"answer": {"blinder": b"q" * 32, "messages": ["m"]}},
        {"answer": {"blinder": b"q" * 32, "messages": [b"m"], "more": 1}},
    ],
    ids=repr,
)
def test_a_file_that_is_not_as_it_should_be(change: dict[str, object]) -> None:
    fields = cbor.decode(GOOD.encode()[8:]) | change
    with pytest.raises(ReceiptError) as caught:
        StoredReceipt.parse(b"CASERCT1" + cbor.encode(fields))
    assert caught.value.code is Code.RECEIPT_MALFORMED


def test_a_file_is_known_by_its_first_bytes() -> None:
    for magic in (b"CASERCT2", b"CASEDAT1", bytes(8)):
        with pytest.raises(ReceiptError):
            StoredReceipt.parse(magic + GOOD.encode()[8:])


def test_header_and_evidence_must_be_readable() -> None:
    assert refusal(replace(GOOD, header=b"\x01")) is Code.RECEIPT_MALFORMED
    assert refusal(replace(GOOD, evidence=b"\xff")) is Code.RECEIPT_MALFORMED


# Steps 2 to 9


def test_2_evidence_is_judged_as_of_the_time_that_is_named() -> None:
    assert refusal(GOOD, at=NOW + 301_000) is Code.EVIDENCE_AGE
    assert refusal(GOOD, at=NOW + 400 * 86_400_000) is Code.EVIDENCE_CHAIN
    assert refusal(GOOD, made.policy(roots=frozenset([bytes(32)]))) is Code.EVIDENCE_ROOT
    unknown = made.policy(models=(AllowedModel("wdbc", bytes(32), None),))
    assert refusal(GOOD, unknown) is Code.EVIDENCE_MODELS


def test_3_evidence_of_another_instance() -> None:
    other = InstanceConfig(b"\x08" * 16, NOW - made.HOUR, "process", made.RECEIPT_KEY)
    bundle = made.attested(replace(made.unsigned(), instance_config=other.encode()))
    assert refusal(rc.stored(bundle=bundle)) is Code.RECEIPT_INSTANCE


def test_4_a_signature_by_another_key() -> None:
    assert refusal(rc.stored(key=OTHER)) is Code.RECEIPT_SIGNATURE
    # A key that signed this very payload for another purpose.
    payload = rc.statement().encode()
    for signed in (payload, b"casemate/v1 receipt\0" + payload):
        receipt = cbor.encode([b"\xa1\x01\x27", {}, payload, made.RECEIPTS.sign(signed)])
        assert refusal(replace(GOOD, receipt=receipt)) is Code.RECEIPT_SIGNATURE


@pytest.mark.parametrize(
    ("time", "code"),
    [
        (made.INSTANCE.boot_time - 1, Code.RECEIPT_TIME),
        (made.INSTANCE.boot_time + LIFETIME + 30_001, Code.RECEIPT_TIME),
        (made.INSTANCE.boot_time + LIFETIME + 30_000, None),
    ],
)
def test_5_time_within_the_instances_life(time: int, code: Code | None) -> None:
    stored = rc.stored(said=rc.statement(time=time))
    if code is None:
        judge(stored)
    else:
        assert refusal(stored) is code


def test_6_another_request() -> None:
    moved = replace(rc.HEADER, sequence=4)
    assert refusal(rc.stored(header=moved)) is Code.RECEIPT_REQUEST
    for header in (
        replace(rc.HEADER, audience=bytes(32)),
        replace(rc.HEADER, instance_id=b"\x09" * 16),
    ):
        said = rc.statement(request_digest=digest(header.encode()))
        assert refusal(rc.stored(said=said, header=header)) is Code.RECEIPT_REQUEST
    anywhere = replace(rc.HEADER, instance_id=ANY_INSTANCE)
    said = rc.statement(request_digest=digest(anywhere.encode()))
    judge(rc.stored(said=said, header=anywhere))


@pytest.mark.parametrize(
    "changes",
    [{"model": "other"}, {"version": 3}, {"digest": b"\xbb" * 48}, {"time": made.LOADED.time - 1}],
    ids=repr,
)
def test_7_a_model_that_was_not_loaded(changes: dict[str, object]) -> None:
    assert refusal(rc.stored(said=rc.statement(**changes))) is Code.RECEIPT_MODEL


def test_7_a_model_that_was_unloaded_since_is_still_listed() -> None:
    log = encode_log([made.LOADED, replace(made.LOADED, op="unload", time=rc.TIME)])
    bundle = made.attested(replace(made.unsigned(), measurement_log=log))
    judge(rc.stored(bundle=bundle))


def test_8_another_question() -> None:
    for question in (
        replace(rc.QUESTION, messages=(b"a questio",)),
        replace(rc.QUESTION, blinder=b"x" * 32),
        replace(rc.ANSWER, messages=(b"a question",)),
    ):
        assert refusal(replace(GOOD, question=question)) is Code.RECEIPT_QUESTION


def test_9_another_answer_or_another_boundary_between_its_pieces() -> None:
    whole = b"".join(rc.ANSWER.messages)
    for messages in ((whole,), (whole[:8], whole[8:]), rc.ANSWER.messages[::-1]):
        answer = replace(rc.ANSWER, messages=messages)
        assert refusal(replace(GOOD, answer=answer)) is Code.RECEIPT_ANSWER


def test_a_question_is_no_answer() -> None:
    """Their hashes have labels of their own: one cannot be shown as the other."""
    same = Shown(b"b" * 32, (b"the same",))
    assert same.hash("question") != same.hash("answer")


def test_secrets_do_not_print_themselves() -> None:
    assert "question'" not in repr(GOOD)
    assert "qqqq" not in repr(GOOD)


def test_the_largest_receipt_fits_its_bound() -> None:
    said = rc.statement(model="n" * 128, version=(1 << 32) - 1, time=(1 << 64) - 1)
    assert len(sign_receipt(OTHER, said)) <= limits.RECEIPT_MAX
