"""Condition blocks, judged as IAM judges them."""

from __future__ import annotations

import pytest

from casemate_devkit.kms.conditions import RequestContext, evaluate, like
from casemate_devkit.kms.principals import Principal

ROLE = Principal("AKIA", "secret", "arn:aws:sts::111122223333:assumed-role/enclave/session")
PCR0 = "kms:RecipientAttestation:PCR0"
PCR8 = "kms:RecipientAttestation:PCR8"
AB = b"\xab" * 48
HEX = AB.hex()
SCOPE = "kms:EncryptionContext:casemate:scope"
KEYS = "kms:EncryptionContextKeys"

ATTESTED = RequestContext(
    ROLE, {"casemate:v": "1", "casemate:scope": "Clinic"}, {0: AB, 4: b"\x04" * 48}
)
BARE = RequestContext(ROLE)


@pytest.mark.parametrize(
    ("operator", "key", "value", "attested", "bare"),
    [
        # Positive operators need the key; negated ones hold without it (A46).
        ("StringEquals", PCR0, HEX, True, False),
        ("StringEquals", PCR0, [HEX], True, False),
        ("StringEquals", PCR0, ["00", HEX], True, False),
        ("StringEquals", PCR0, HEX.upper(), False, False),
        ("StringEquals", PCR0.lower(), HEX, True, False),
        ("StringEquals", PCR0, "00" * 48, False, False),
        ("StringEqualsIgnoreCase", PCR0, HEX.upper(), True, False),
        ("StringNotEquals", PCR0, HEX, False, True),
        ("StringNotEquals", PCR0, "00", True, True),
        ("StringNotEquals", PCR0, ["00", HEX], False, True),
        ("StringNotEqualsIgnoreCase", PCR0, HEX.upper(), False, True),
        ("StringLike", PCR0, "*", True, False),
        ("StringLike", PCR0, "ab*", True, False),
        ("StringLike", PCR0, "ab?", False, False),
        ("StringNotLike", PCR0, "*", False, True),
        ("StringEqualsIfExists", PCR0, HEX, True, True),
        ("StringEqualsIfExists", PCR0, "00", False, True),
        ("Null", PCR0, "true", False, True),
        ("Null", PCR0, True, False, True),
        ("Null", PCR0, "false", True, False),
        ("Null", PCR0, ["true", "false"], True, True),
        ("StringEquals", PCR8, HEX, False, False),
        ("StringEquals", "kms:RecipientAttestation:ImageSha384", HEX, True, False),
        # The encryption context.
        ("StringEquals", SCOPE, "Clinic", True, False),
        ("StringEquals", SCOPE.upper(), "Clinic", True, False),
        ("StringEquals", SCOPE, "clinic", False, False),
        ("StringEquals", "kms:EncryptionContext:other", "x", False, False),
        ("ForAllValues:StringEquals", KEYS, ["casemate:v", "casemate:scope"], True, True),
        ("ForAllValues:StringEquals", KEYS, ["casemate:v"], False, True),
        ("ForAllValues:StringEquals", KEYS, ["casemate:v", "CASEMATE:SCOPE"], False, True),
        ("ForAnyValue:StringEquals", KEYS, ["casemate:v"], True, False),
        ("ForAnyValue:StringEquals", KEYS, ["x"], False, False),
        ("ForAnyValue:StringNotEquals", KEYS, ["casemate:v"], True, False),
        ("ForAllValues:StringNotEquals", KEYS, ["casemate:v"], False, True),
        ("ForAllValues:StringNotEquals", KEYS, ["x"], True, True),
        ("ForAnyValue:StringEqualsIfExists", KEYS, ["x"], False, True),
        # A set operator on a single-valued key: ForAllValues holds without the key.
        ("ForAllValues:StringEquals", PCR0, "00", False, True),
        # The caller and the transport.
        ("StringEquals", "kms:CallerAccount", "111122223333", True, True),
        ("StringEquals", "aws:PrincipalArn", "arn:aws:iam::111122223333:role/enclave", True, True),
        ("Null", "kms:ViaService", "true", True, True),
        ("Bool", "aws:SecureTransport", "false", False, False),
        ("Bool", "aws:SecureTransport", True, True, True),
        # Not understood: neither true nor false.
        ("StringMatches", PCR0, HEX, None, None),
        ("stringequals", PCR0, HEX, None, None),
        ("NullIfExists", PCR0, "true", None, None),
        ("Null", PCR0, "maybe", None, None),
        ("ForSomeValues:StringEquals", PCR0, HEX, None, None),
        ("StringEquals", "kms:RecipientAttestation:PCR32", HEX, None, None),
        ("StringEquals", "kms:RecipientAttestation:PCR00", HEX, None, None),
        ("StringEquals", "kms:RecipientAttestation:NitroTPMPCR4", HEX, None, None),
        ("StringEquals", "kms:EncryptionContext:", HEX, None, None),
        ("StringEquals", "aws:SourceIp", "10.0.0.1", None, None),
        ("StringEquals", PCR0, 7, None, None),
        ("StringEquals", PCR0, [], None, None),
        ("StringEquals", PCR0, None, None, None),
        ("StringEquals", PCR0, "${aws:username}", None, None),
    ],
)
def test_operator(
    operator: str, key: str, value: object, attested: bool | None, bare: bool | None
) -> None:
    condition = {operator: {key: value}}
    assert evaluate(condition, ATTESTED).satisfied is attested
    assert evaluate(condition, BARE).satisfied is bare


def test_multivalued_key_without_set_operator_is_not_understood() -> None:
    condition = {"StringEquals": {KEYS: "casemate:v"}}
    assert evaluate(condition, ATTESTED).satisfied is None
    twice = RequestContext(ROLE, {"Scope": "a", "scope": "b"})
    assert evaluate({"StringEquals": {"kms:EncryptionContext:scope": "a"}}, twice).satisfied is None


def test_operators_and_keys_are_anded() -> None:
    both = {"StringEquals": {PCR0: HEX, SCOPE: "Clinic"}, "Bool": {"aws:SecureTransport": "true"}}
    assert evaluate(both, ATTESTED).satisfied is True
    for changed in (
        both | {"Bool": {"aws:SecureTransport": "false"}},
        both | {"StringEquals": {PCR0: HEX, SCOPE: "other"}},
    ):
        assert evaluate(changed, ATTESTED).satisfied is False


def test_false_outweighs_what_is_not_understood() -> None:
    condition = {"StringEquals": {PCR0: "00"}, "Unknown": {PCR0: HEX}}
    outcome = evaluate(condition, ATTESTED)
    assert outcome.satisfied is False
    assert outcome.unknown == (f"Unknown {PCR0}",)


@pytest.mark.parametrize("condition", [None, [], "x", {"StringEquals": {}}, {"StringEquals": 1}])
def test_malformed_block_is_not_understood(condition: object) -> None:
    assert evaluate(condition, ATTESTED).satisfied is None


def test_empty_block_holds() -> None:
    assert evaluate({}, BARE).satisfied is True


def test_failure_names_the_register() -> None:
    (failure,) = evaluate({"StringEquals": {PCR0: "00"}}, ATTESTED).failures
    assert (failure.register, failure.policy, failure.request) == (0, ("00",), (HEX,))


def test_like_has_no_character_classes() -> None:
    assert like("a[b]c", "a[b]c")
    assert not like("abc", "a[b]c")
    assert like("a\nb", "a*b")
    assert not like("a" * 2000, "*a" * 40 + "b")
