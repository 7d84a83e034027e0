"""Key policies: default deny, explicit Deny wins, unknown things never allow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from casemate_devkit.kms.conditions import RequestContext
from casemate_devkit.kms.errors import KmsError
from casemate_devkit.kms.policy import (
    AccessRequest,
    Decision,
    decide,
    not_understood,
    parse_policy,
)
from casemate_devkit.kms.principals import Principal

ACCOUNT = "111122223333"
USER = f"arn:aws:iam::{ACCOUNT}:user/ada"
KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/6c1f6aae-9f1c-4c9f-8b1c-6f3f1f1f1f1f"
CALLER = Principal("AKIA", "secret", USER)
ASSUMED = Principal("ASIA", "secret", f"arn:aws:sts::{ACCOUNT}:assumed-role/enclave/i-0123")
PCR0 = "kms:RecipientAttestation:PCR0"
ALLOW = {
    "Effect": "Allow",
    "Principal": {"AWS": USER},
    "Action": "kms:Decrypt",
    "Resource": "*",
}
DENY = ALLOW | {"Effect": "Deny", "Sid": "Never"}


def judge(
    *statements: dict[str, Any],
    action: str = "kms:Decrypt",
    caller: Principal = CALLER,
    registers: dict[int, bytes] | None = None,
    **top: object,
) -> Decision:
    policy = {"Version": "2012-10-17", "Statement": list(statements)} | top
    return decide(policy, request(action, caller, registers))


def request(
    action: str = "kms:Decrypt",
    caller: Principal = CALLER,
    registers: dict[int, bytes] | None = None,
) -> AccessRequest:
    return AccessRequest(caller, action, KEY, RequestContext(caller, {}, registers))


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({}, True),
        ({"Principal": "*"}, True),
        ({"Principal": {"AWS": "*"}}, True),
        ({"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}}, True),  # the reading to fear
        ({"Principal": {"AWS": ACCOUNT}}, True),
        ({"Principal": {"AWS": ["arn:aws:iam::999988887777:root", USER]}}, True),
        ({"Principal": {"AWS": "arn:aws:iam::999988887777:root"}}, False),
        ({"Principal": {"AWS": USER + "x"}}, False),
        ({"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:user/*"}}, False),
        ({"Principal": {"Service": "ec2.amazonaws.com"}}, False),
        ({"Principal": {}}, False),
        ({"Principal": {"AWS": []}}, False),
        ({"Principal": {"Everybody": "*"}}, False),
        ({"Principal": USER}, False),
        ({"Action": "kms:*"}, True),
        ({"Action": "*"}, True),
        ({"Action": "KMS:DECRYPT"}, True),
        ({"Action": ["kms:Encrypt", "kms:D?crypt"]}, True),
        ({"Action": "kms:Encrypt"}, False),
        ({"Action": "Decrypt"}, False),
        ({"Action": 1}, False),
        ({"Resource": KEY}, True),
        ({"Resource": ["x", KEY[:-4] + "*"]}, True),
        ({"Resource": KEY[:-1]}, False),
        ({"Resource": None}, False),
        ({"Condition": {}}, True),
        ({"Condition": None}, False),
        ({"Condition": {"StringEquals": {"kms:CallerAccount": ACCOUNT}}}, True),
        ({"Condition": {"Unknown": {"kms:CallerAccount": ACCOUNT}}}, False),
        ({"NotPrincipal": {"AWS": "x"}}, False),
        ({"NotResource": "x"}, False),
    ],
)
def test_allow(change: dict[str, Any], allowed: bool) -> None:
    assert judge(ALLOW | change).allowed is allowed


@pytest.mark.parametrize(
    ("not_action", "allowed"),
    [("kms:Encrypt", True), ("kms:De*", False), (["kms:Encrypt", "kms:Decrypt"], False)],
)
def test_not_action_allows_the_rest(not_action: object, allowed: bool) -> None:
    statement = {key: value for key, value in ALLOW.items() if key != "Action"}
    assert judge(statement | {"NotAction": not_action}).allowed is allowed


def test_default_deny() -> None:
    decision = judge(ALLOW, action="kms:Encrypt")
    assert not decision.allowed
    assert not decision.explicit
    assert decision.reason.statement is None


def test_explicit_deny_wins_wherever_it_stands() -> None:
    for statements in ((ALLOW, DENY), (DENY, ALLOW)):
        decision = judge(*statements)
        assert not decision.allowed
        assert decision.explicit
        assert decision.reason.statement == '"Never"'


@pytest.mark.parametrize(
    "change",
    [
        {"Condition": {"Unknown": {"kms:CallerAccount": ACCOUNT}}},
        {"Condition": {"StringEquals": {"aws:SourceVpc": "vpc-1"}}},
        {"NotResource": "x"},
        {"Surprise": 1},
    ],
)
def test_deny_with_unknown_parts_denies(change: dict[str, Any]) -> None:
    decision = judge(ALLOW, DENY | change)
    assert decision.explicit
    assert "not understood" in decision.reason.text


def test_deny_that_names_somebody_else_is_no_deny() -> None:
    other = DENY | {"Principal": {"AWS": "arn:aws:iam::999988887777:root"}}
    assert judge(ALLOW, other, DENY | {"Action": "kms:Encrypt"}).allowed


def test_deny_with_not_equals_catches_unattested(hexes: tuple[str, str]) -> None:
    deny = DENY | {"Condition": {"StringNotEquals": {PCR0: hexes[0]}}}
    assert judge(ALLOW, deny, registers={0: bytes.fromhex(hexes[0])}).allowed
    assert not judge(ALLOW, deny, registers={0: bytes.fromhex(hexes[1])}).allowed
    assert not judge(ALLOW, deny).allowed


@pytest.fixture
def hexes() -> tuple[str, str]:
    return "aa" * 48, "bb" * 48


def test_assumed_role_is_named_by_its_role_or_session() -> None:
    role = ALLOW | {"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:role/enclave"}}
    assert judge(role, caller=ASSUMED).allowed
    assert judge(ALLOW | {"Principal": {"AWS": ASSUMED.arn}}, caller=ASSUMED).allowed
    assert not judge(ALLOW, caller=ASSUMED).allowed


def test_unknown_top_level_element_or_version_denies() -> None:
    assert not judge(ALLOW, Surprise=1).allowed
    assert not judge(ALLOW, Version="2030-01-01").allowed
    assert not judge(ALLOW, Version=[]).allowed
    assert judge(ALLOW, Id="x", Version="2008-10-17").allowed


def test_nearest_statement_and_register_are_named(hexes: tuple[str, str]) -> None:
    far = {"StringEquals": {PCR0: hexes[0], "kms:RecipientAttestation:PCR1": hexes[0]}}
    near = {"StringEquals": {PCR0: hexes[0]}}
    reason = judge(
        ALLOW | {"Sid": "Far", "Condition": far},
        ALLOW | {"Sid": "Near", "Condition": near},
        registers={0: bytes.fromhex(hexes[1])},
    ).reason
    assert reason.statement == '"Near"'
    (register,) = reason.registers
    assert (register.pcr, register.policy, register.document) == (0, (hexes[0],), hexes[1])
    assert "PCR0: policy aaaaaaaaaaaa..., document bbbbbbbbbbbb..." in reason.text
    header = json.loads(reason.header())
    assert header["pcrs"] == [{"pcr": 0, "policy": [hexes[0]], "document": hexes[1]}]


def test_header_is_bounded_ascii(hexes: tuple[str, str]) -> None:
    wide = {"StringEquals": {PCR0: [f"{index:096x}" for index in range(500)]}}
    reason = judge(ALLOW | {"Sid": "x\r\nSet-Cookie: é", "Condition": wide}).reason
    assert len(reason.header()) <= 6 * 1024
    assert reason.header().isascii()
    assert reason.header().isprintable()


def test_not_understood_is_listed() -> None:
    statement = ALLOW | {"Sid": "Odd", "Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}
    policy = {"Version": "2012-10-17", "Statement": statement}
    assert not_understood(policy, request()) == ['statement "Odd": IpAddress aws:SourceIp']
    assert not_understood(policy, request(action="kms:Encrypt")) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({"Statement": []}),
        json.dumps({"Statement": ["x"]}),
        json.dumps({"Statement": [ALLOW | {"Effect": []}]}),
        json.dumps({"Statement": [ALLOW | {"Effect": "allow"}]}),
        json.dumps({"Statement": [ALLOW | {"NotAction": "x"}]}),
        json.dumps({"Statement": [{k: v for k, v in ALLOW.items() if k != "Resource"}]}),
        json.dumps({"Statement": [{k: v for k, v in ALLOW.items() if k != "Principal"}]}),
        json.dumps({"Statement": [ALLOW]})[:-1] + ',"Statement":[]}',
        json.dumps({"Statement": [ALLOW], "Id": "x" * 32_768}),
    ],
)
def test_malformed_policy_is_refused(text: str) -> None:
    with pytest.raises(KmsError) as caught:
        parse_policy(text)
    assert caught.value.kind == "MalformedPolicyDocumentException"
