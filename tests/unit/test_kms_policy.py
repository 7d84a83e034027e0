"""Key policies: what is written is narrow, what is wide is refused (K1, K3)."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import limits
from casemate.attestation.policy import AllowedModel, Release, TrustPolicy
from casemate.errors import Code, PolicyError
from casemate.kms_context import data_context, model_context
from casemate.kms_policy import attested_key_policy, check_key_policy
from casemate_devkit.kms.conditions import RequestContext
from casemate_devkit.kms.policy import AccessRequest, decide, parse_policy
from casemate_devkit.kms.principals import Principal

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.kms_policy import KeyPolicy

ACCOUNT = "111122223333"
ADMIN = f"arn:aws:iam::{ACCOUNT}:role/kms-admin"
SEALER = f"arn:aws:iam::{ACCOUNT}:role/clinic-app"
ENCLAVE = "arn:aws:iam::444455556666:role/enclave"
SCOPE = "clinic.example/screening"
RELEASES = (
    Release("0.1.0", b"\xa0" * 48, b"\xa1" * 48, b"\xa2" * 48, b"\xb0" * 48),
    Release("0.2.0", b"\xc0" * 48, b"\xc1" * 48, b"\xc2" * 48, b"\xd0" * 48),
)
TRUST = TrustPolicy(
    platform="nitro-enclave",
    audience=SCOPE,
    roots=frozenset([b"\x01" * 32]),
    evidence="fresh",
    maximum_age_seconds=300,
    allow_debug=False,
    releases=RELEASES,
    models=(AllowedModel("wdbc", b"\x02" * 32),),
)
PCR = "kms:RecipientAttestation:PCR"


def written(**changes: object) -> KeyPolicy:
    arguments: dict[str, Any] = {
        "account_admin": ADMIN,
        "decrypt_principal": ENCLAVE,
        "releases": RELEASES,
        "purpose": "data",
        "scope": SCOPE,
        "encrypt_principals": [SEALER],
    }
    return attested_key_policy(**(arguments | changes))


def check(policy: KeyPolicy | str) -> None:
    check_key_policy(policy, TRUST, purpose="data", scope=SCOPE)


def refused(policy: KeyPolicy | str) -> str:
    with pytest.raises(PolicyError) as caught:
        check(policy)
    assert caught.value.code is Code.KMS_POLICY_TOO_WIDE
    return caught.value.detail


def allowed(
    policy: KeyPolicy,
    arn: str,
    action: str,
    context: dict[str, str] | None = None,
    registers: dict[int, bytes] | None = None,
) -> bool:
    """Whether the double would allow it."""
    principal = Principal("AKIA", "secret", arn)
    request_context = RequestContext(principal, context or {}, registers)
    request = AccessRequest(principal, action, "arn:aws:kms:x:1:key/k", request_context)
    return decide(parse_policy(json.dumps(policy)), request).allowed


# Writing


def test_written_policy_passes_its_own_check() -> None:
    check(written())
    check(json.dumps(written()))
    check(written(releases=RELEASES[:1]))


def test_enclave_decrypts_with_a_release_and_the_context_only() -> None:
    policy, context = written(), data_context(SCOPE)
    for release in RELEASES:
        assert allowed(policy, ENCLAVE, "kms:Decrypt", context, release.registers)
    good = RELEASES[0].registers
    assert not allowed(policy, ENCLAVE, "kms:Decrypt", context)
    assert not allowed(policy, SEALER, "kms:Decrypt", context, good)
    assert not allowed(policy, ENCLAVE, "kms:Decrypt", {}, good)
    assert not allowed(policy, ENCLAVE, "kms:Decrypt", context | {"more": "x"}, good)
    assert not allowed(policy, ENCLAVE, "kms:Decrypt", data_context("other"), good)
    for index, other in itertools.product(good, (RELEASES[1].registers, {})):
        mixed = {i: v for i, v in good.items() if i != index}
        mixed |= {index: other[index]} if other else {}
        assert not allowed(policy, ENCLAVE, "kms:Decrypt", context, mixed)


def test_nobody_else_gets_at_plaintexts() -> None:
    policy, context = written(), data_context(SCOPE)
    for arn in (ADMIN, SEALER, ENCLAVE, f"arn:aws:iam::{ACCOUNT}:user/any"):
        for action in ("Decrypt", "ReEncryptFrom", "ReEncryptTo", "CreateGrant", "ReplicateKey"):
            assert not allowed(policy, arn, f"kms:{action}", context)
    assert not allowed(policy, ADMIN, "kms:GenerateDataKey", context)
    assert not allowed(policy, ENCLAVE, "kms:GenerateDataKey", context)
    assert not allowed(policy, SEALER, "kms:PutKeyPolicy")


def test_sealing_needs_the_exact_context() -> None:
    policy, context = written(), data_context(SCOPE)
    assert allowed(policy, SEALER, "kms:GenerateDataKey", context)
    assert allowed(policy, SEALER, "kms:GetKeyPolicy")
    wrong = [
        {},
        data_context("other"),
        context | {"more": "x"},
        model_context(b"\x02" * 32, "wdbc"),
        {name.upper(): value for name, value in context.items()},
    ]
    for other in wrong:
        assert not allowed(policy, SEALER, "kms:GenerateDataKey", other)


def test_denies_outlive_a_wide_allow() -> None:
    policy = written()
    everything = {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"}
    policy["Statement"].append(everything)
    context = data_context(SCOPE)
    assert not allowed(policy, SEALER, "kms:Decrypt", context)
    assert not allowed(policy, SEALER, "kms:CreateGrant")
    assert not allowed(policy, SEALER, "kms:ReEncryptFrom", context)


def test_model_keys_have_their_own_context() -> None:
    scope = f"{'02' * 32}/wdbc"
    policy = written(purpose="model", scope=scope)
    check_key_policy(policy, TRUST, purpose="model", scope=scope)
    context = model_context(b"\x02" * 32, "wdbc")
    assert allowed(policy, ENCLAVE, "kms:Decrypt", context, RELEASES[0].registers)
    refused(policy)


def test_size_stays_below_the_limit_of_kms() -> None:
    many = [
        Release(f"{n}", *(bytes([n + 1]) + bytes([i]) * 47 for i in range(4))) for n in range(16)
    ]
    policy = written(releases=many)
    assert len(json.dumps(policy, separators=(",", ":"))) <= limits.KEY_POLICY_MAX
    with pytest.raises(PolicyError, match="32 KiB"):
        written(releases=many, scope="\u00e9" * 127)


@pytest.mark.parametrize(
    "changes",
    [
        {"account_admin": "*"},
        {"decrypt_principal": "*"},
        {"decrypt_principal": "arn:aws:iam::444455556666:role/*"},
        {"encrypt_principals": []},
        {"encrypt_principals": ["*"]},
        {"encrypt_principals": ["arn:aws:iam::*:root"]},
        {"releases": []},
        {"releases": RELEASES * 9},
        {"purpose": "other"},
        {"scope": ""},
        {"scope": "${aws:username}"},
    ],
)
def test_arguments_that_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PolicyError) as caught:
        written(**changes)
    assert caught.value.code is Code.INVALID_ARGUMENT


# Judging


def decrypt_statement(policy: KeyPolicy) -> dict[str, Any]:
    found: dict[str, Any] = policy["Statement"][3]
    assert found["Action"] == "kms:Decrypt"
    return found


def condition(operator: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda statement: statement["Condition"][operator]


registers = condition("StringEqualsIgnoreCase")
context_values = condition("StringEquals")
context_keys = condition("ForAllValues:StringEquals")


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda s: s.pop("Condition"), "without attestation"),
        (lambda s: s.update(Condition={}), "without attestation"),
        (lambda s: s.update(Condition=None), "without attestation"),
        *[
            (lambda s, i=i: registers(s).pop(f"{PCR}{i}"), f"without one value of PCR{i}")
            for i in (0, 1, 2, 16)
        ],
        (lambda s: registers(s).update({f"{PCR}0": "00" * 48}), "not accepted: PCR0"),
        (lambda s: registers(s).update({f"{PCR}16": "d0" * 48}), "not accepted: PCR16"),
        (lambda s: registers(s).update({f"{PCR}1": ["a1" * 48, "c1" * 48]}), "one value of PCR1"),
        (lambda s: registers(s).update({f"{PCR}2": []}), "not text"),
        (lambda s: registers(s).update({f"{PCR}2": 7}), "not text"),
        (lambda s: registers(s).update({f"{PCR.lower()}2": "a2" * 48}), "one condition key twice"),
        (
            lambda s: s["Condition"].update(
                StringLike=s["Condition"].pop("StringEqualsIgnoreCase")
            ),
            "without one value of PCR0",
        ),
        (
            lambda s: s["Condition"].update(
                StringEqualsIfExists=s["Condition"].pop("StringEqualsIgnoreCase")
            ),
            "'StringEqualsIfExists' is not understood",
        ),
        (
            lambda s: s["Condition"].update(
                {"ForAllValues:StringEquals": s["Condition"].pop("StringEqualsIgnoreCase")}
            ),
            "without one value of PCR0",
        ),
        (lambda s: s["Condition"].update(StringNotEquals={f"{PCR}8": "x"}), "not understood"),
        (lambda s: s["Condition"].update(Bool=[]), "not understood"),
        (lambda s: s["Condition"].pop("StringEquals"), "casemate:v"),
        (lambda s: s["Condition"].pop("ForAllValues:StringEquals"), "other encryption context"),
        (
            lambda s: context_values(s).pop("kms:EncryptionContext:casemate:scope"),
            "without StringEquals kms:EncryptionContext:casemate:scope",
        ),
        (
            lambda s: context_values(s).update({"kms:EncryptionContext:casemate:scope": "other"}),
            "casemate:scope",
        ),
        (
            lambda s: context_values(s).update(
                {"kms:EncryptionContext:casemate:scope": [SCOPE, "other"]}
            ),
            "casemate:scope",
        ),
        (
            lambda s: context_values(s).update({"kms:EncryptionContext:casemate:purpose": "model"}),
            "casemate:purpose",
        ),
        (
            lambda s: context_keys(s)["kms:EncryptionContextKeys"].append("more"),
            "other encryption context keys",
        ),
        (
            lambda s: context_keys(s).update(
                {"\u212ams:EncryptionContextKeys": context_keys(s).popitem()[1]}
            ),
            "a foreign one",
        ),
        (lambda s: s.update(Effect="allow"), "neither Allow nor Deny"),
        (lambda s: s.pop("Effect"), "neither Allow nor Deny"),
        (lambda s: s.update(NotPrincipal="x"), "not understood: NotPrincipal"),
        (lambda s: s.update(NotResource="x"), "not understood: NotResource"),
        (lambda s: s.update(NotAction="x"), "exactly one of"),
        (lambda s: s.pop("Action"), "exactly one of"),
        (lambda s: s.update(Action=1), "actions are not understood"),
        (lambda s: s.update(Action=[]), "actions are not understood"),
    ],
)
def test_one_flaw_in_the_decrypt_statement(
    edit: Callable[[dict[str, Any]], object], named: str
) -> None:
    policy = written(releases=RELEASES[:1])
    edit(decrypt_statement(policy))
    assert named in refused(policy)


@pytest.mark.parametrize(
    "action",
    [
        "kms:*",
        "*",
        "kms:Decrypt",
        "KMS:DECRYPT",
        "kms:De*",
        "kms:?ecrypt",
        "kms:DeriveSharedSecret",
        "kms:ReEncrypt*",
        "kms:ReEncryptFrom",
        "kms:CreateGrant",
        "kms:Create*",
        "kms:ReplicateKey",
        ["kms:Encrypt", "kms:Decrypt"],
    ],
)
def test_any_unconditioned_way_to_the_plaintext(action: object) -> None:
    wide = {"Effect": "Allow", "Principal": {"AWS": ADMIN}, "Action": action, "Resource": "*"}
    policy = written()
    policy["Statement"].append(wide)
    assert "without attestation" in refused(policy)
    assert "without attestation" in refused({"Version": "2012-10-17", "Statement": wide})


def test_not_action_reaches_what_it_does_not_name() -> None:
    wide = {"Effect": "Allow", "Principal": "*", "NotAction": "kms:Encrypt", "Resource": "*"}
    assert "without attestation" in refused({"Statement": [wide]})
    for foreign in (["\u212ams:*"], ["kms:* "], ["kms:[a-z]*"]):
        assert "not understood" in refused({"Statement": [wide | {"NotAction": foreign}]})
    narrow = wide | {"NotAction": ["kms:De*", "kms:Re*", "kms:Create*"]}
    check({"Statement": [narrow]})


def test_the_default_policy_and_pcr0_alone_are_too_wide() -> None:
    default = written(releases=RELEASES[:1])["Statement"][0] | {"Action": "kms:*"}
    refused({"Version": "2012-10-17", "Statement": [default]})
    policy = written(releases=RELEASES[:1])
    statement = decrypt_statement(policy)
    statement["Condition"] = {"StringEqualsIgnoreCase": {f"{PCR}0": "a0" * 48}}
    assert "PCR1" in refused(policy)


def test_release_that_is_not_trusted() -> None:
    other = Release("9", b"\x09" * 48, b"\xa1" * 48, b"\xa2" * 48, b"\xb0" * 48)
    assert "not accepted: PCR0" in refused(written(releases=[other]))


def test_release_below_the_minimum() -> None:
    """An old release that is only known, not accepted, must not be released to either."""
    old, new = (replace(release, number=n) for n, release in enumerate(RELEASES, 1))
    floor = replace(TRUST, releases=(old, new), minimum_release=2)
    check_key_policy(written(releases=[new]), floor, purpose="data", scope=SCOPE)
    for releases in ([old], [old, new]):
        with pytest.raises(PolicyError, match="not accepted: PCR0"):
            check_key_policy(written(releases=releases), floor, purpose="data", scope=SCOPE)


def test_upper_case_registers_and_further_conditions_are_fine() -> None:
    policy = written()
    statement = decrypt_statement(policy)
    block = statement["Condition"].pop("StringEqualsIgnoreCase")
    statement["Condition"]["StringEqualsIgnoreCase"] = {
        key.upper(): [value.upper()] for key, value in block.items()
    }
    statement["Condition"]["Bool"] = {"aws:SecureTransport": True}
    check(policy)


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "[]",
        "{}",
        "{",
        "[" * 30_000,
        '{"Statement": []}',
        '{"Statement": [{"Effect": []}], "Version": []}',
        '{"Statement": [{"Effect": []}]}',
        '{"Statement": ["x"]}',
        '{"Statement": [], "Statement": []}',
        '{"Statement": [{"Effect": "Deny", "Effect": "Allow"}]}',
        " " * (limits.KEY_POLICY_MAX + 1),
        json.dumps(written() | {"Version": "2030-01-01"}),
        json.dumps(written() | {"Surprise": 1}),
    ],
)
def test_texts_that_are_refused(policy: str) -> None:
    refused(policy)


def test_scope_that_a_policy_cannot_state() -> None:
    with pytest.raises(PolicyError) as caught:
        check_key_policy(written(), TRUST, purpose="data", scope="${aws:username}")
    assert caught.value.code is Code.INVALID_ARGUMENT


# What passes the check is narrow, whatever it looks like: judged by the double's evaluator

KEYS = [f"{PCR}{index}" for index in (0, 1, 2, 16)]
CONTEXT = data_context(SCOPE)
CONTEXT_NAMES = [f"kms:EncryptionContext:{name}" for name in CONTEXT]
OPERATORS = [
    "StringEquals",
    "StringEqualsIgnoreCase",
    "StringEqualsIfExists",
    "StringLike",
    "StringNotEquals",
    "ForAllValues:StringEquals",
    "ForAnyValue:StringEquals",
    "Null",
]
VALUES = [
    *(value.hex() for release in RELEASES for value in release.registers.values()),
    *CONTEXT.values(),
    *CONTEXT,
    "*",
    "true",
    "false",
]


@st.composite
def policies(draw: st.DrawFn) -> KeyPolicy:
    """Statements near the good one: its condition with a few entries changed, moved or dropped."""
    policy = copy.deepcopy(written())
    statement = decrypt_statement(policy)
    block = statement["Condition"]
    for _ in range(draw(st.integers(0, 3))):
        operator = draw(st.sampled_from(OPERATORS))
        key = draw(st.sampled_from([*KEYS, *CONTEXT_NAMES, "kms:EncryptionContextKeys"]))
        values = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=3))
        if draw(st.booleans()):
            block.setdefault(operator, {})[key] = values if len(values) > 1 else values[0]
        elif operator in block and key in block[operator]:
            del block[operator][key]
    statement["Action"] = draw(st.sampled_from(["kms:Decrypt", "kms:*", ["kms:De*"]]))
    kept = [item for item in policy["Statement"] if item["Effect"] == "Allow"]
    return {"Version": "2012-10-17", "Statement": kept}


@given(policies())
def test_what_passes_the_check_lets_no_other_request_decrypt(policy: KeyPolicy) -> None:
    try:
        check(policy)
    except PolicyError:
        return
    good = RELEASES[0].registers
    mixed = good | {16: RELEASES[1].pcr16}
    assert not allowed(policy, ENCLAVE, "kms:Decrypt", CONTEXT)
    assert not allowed(policy, ENCLAVE, "kms:Decrypt", CONTEXT, mixed)
    assert not allowed(policy, ENCLAVE, "kms:Decrypt", CONTEXT, {0: good[0]})
    assert not allowed(policy, ENCLAVE, "kms:Decrypt", CONTEXT | {"more": "x"}, good)
    assert not allowed(policy, ENCLAVE, "kms:Decrypt", data_context("other"), good)
    for index in good:
        zeroed = good | {index: bytes(48)}
        assert not allowed(policy, ENCLAVE, "kms:Decrypt", CONTEXT, zeroed)
