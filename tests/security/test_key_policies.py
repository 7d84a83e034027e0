"""K1: each weakness of a key policy is played against the double, named, and mended.

Every case has a weak policy, an attack by a real boto3 client that gets the plaintext under it, the
linter's code, and the mended policy under which the same attack is refused and nothing is found.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import Code, PolicyError
from casemate.kms_policy_lint import Finding, Weakness, lint_key_policy, linter
from casemate_devkit.kms import KmsDouble
from casemate_devkit.kms.conditions import RequestContext
from casemate_devkit.kms.policy import AccessRequest, decide
from tests.support import nitro_pki
from tests.support.key_policies import (
    ADMIN,
    CLINIC,
    CONTEXT,
    ENCLAVE,
    EXACT,
    HEX,
    IMAGE,
    IN,
    NAMES,
    OTHER,
    PCR,
    PINNED,
    PIPELINE,
    PRINCIPALS,
    RELEASE,
    SCOPE,
    SEALER,
    SECRET,
    TRUST,
    WITHDRAWN,
    World,
    allow,
    also,
    as_outsider,
    attestation,
    by_alias,
    by_data_key,
    by_derivation,
    by_grant,
    by_new_policy,
    by_re_encryption,
    context,
    enclave_with,
    foreign_context,
    good,
    no_enclave,
    releasing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.kms_policy import KeyPolicy

ZERO = "0" * 96
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "kms-policies.md"


@dataclass(frozen=True)
class Case:
    """One weakness; ``mended`` is by default the policy that Casemate writes."""

    weakness: Weakness
    weak: KeyPolicy
    attack: Callable[[World], bytes]
    mended: KeyPolicy = field(default_factory=good)
    spec: str = "SYMMETRIC_DEFAULT"


def dropped(*keys: str) -> Callable[[dict[str, Any]], None]:
    """Remove condition keys from every operator of a Decrypt statement."""

    def change(condition: dict[str, Any]) -> None:
        for operator in list(condition):
            block = {key: item for key, item in condition[operator].items() if key not in keys}
            condition[operator] = block
            if not block:
                del condition[operator]

    return change


def scope_by_pattern(condition: dict[str, Any]) -> None:
    del condition["StringEquals"][f"{IN}scope"]
    condition["StringLike"] = {f"{IN}scope": "clinic.example/*"}


def to_everybody(statement: dict[str, Any]) -> None:
    statement["Principal"] = {"AWS": "*"}


def to_others(statement: dict[str, Any]) -> None:
    del statement["Principal"]
    statement["NotPrincipal"] = {"AWS": ADMIN.arn}


def denying(*conditions: dict[str, Any]) -> KeyPolicy:
    """An unattested Allow with Deny statements that are meant to make up for it."""
    denies = [
        allow("*", "kms:Decrypt", condition) | {"Effect": "Deny", "Sid": f"Deny{number}"}
        for number, condition in enumerate(conditions)
    ]
    own = {"StringEquals": EXACT, "ForAllValues:StringEquals": {NAMES: list(CONTEXT)}}
    return also(allow({"AWS": ENCLAVE.arn}, "kms:Decrypt", own), *denies)


def default_policy() -> KeyPolicy:
    root = {"AWS": f"arn:aws:iam::{CLINIC}:root"}
    return {"Version": "2012-10-17", "Statement": [allow(root, "kms:*")]}


def agreement(condition: object) -> KeyPolicy:
    """The policy of a key for key agreement, which knows no encryption context."""
    manage = next(item for item in good()["Statement"] if item["Sid"] == "Manage")
    return {
        "Version": "2012-10-17",
        "Statement": [
            manage,
            allow({"AWS": SEALER.arn}, "kms:GetPublicKey"),
            allow({"AWS": ENCLAVE.arn}, "kms:DeriveSharedSecret", condition),
        ],
    }


def cased(operator: str, **more: object) -> dict[str, Any]:
    return {operator: {key: more.get(key, value) for key, value in PINNED.items()}}


SEALS_ALL = allow({"AWS": SEALER.arn}, "kms:Encrypt")
CASES = [
    Case(
        Weakness.PCR0_ONLY,
        attestation(StringEqualsIgnoreCase={f"{PCR}0": HEX[0]}),
        enclave_with({1: OTHER, 2: OTHER, 16: OTHER}),
    ),
    Case(
        Weakness.IMAGE_SHA384_ONLY,
        attestation(StringEqualsIgnoreCase={IMAGE: HEX[0]}),
        enclave_with({1: OTHER, 2: OTHER, 16: OTHER}),
    ),
    Case(
        Weakness.IDENTITY_REGISTERS_ONLY,
        attestation(StringEqualsIgnoreCase={f"{PCR}{index}": "ab" * 48 for index in (3, 4, 8)}),
        enclave_with(dict.fromkeys((0, 1, 2, 16), OTHER), dict.fromkeys((3, 4, 8), b"\xab" * 48)),
    ),
    Case(
        Weakness.REGISTER_MISSING,
        attestation(StringEqualsIgnoreCase={f"{PCR}{index}": HEX[index] for index in (0, 1, 16)}),
        enclave_with({2: OTHER}),
    ),
    Case(
        Weakness.PCR16_MISSING,
        attestation(StringEqualsIgnoreCase={f"{PCR}{index}": HEX[index] for index in (0, 1, 2)}),
        enclave_with({16: OTHER}),
    ),
    Case(
        Weakness.ZERO_REGISTER,
        attestation(
            StringEqualsIgnoreCase={f"{PCR}{index}": ZERO for index in (0, 1, 2)}
            | {f"{PCR}16": HEX[16]}
        ),
        enclave_with(dict.fromkeys((0, 1, 2), bytes(48))),
    ),
    Case(
        Weakness.REGISTER_WILDCARD,
        attestation(StringLike=dict.fromkeys(PINNED, "*")),
        enclave_with(dict.fromkeys((0, 1, 2, 16), OTHER)),
    ),
    Case(
        Weakness.RELEASES_MIXED,
        attestation(
            StringEqualsIgnoreCase={
                f"{PCR}{index}": [HEX[index], WITHDRAWN.registers[index].hex()] for index in HEX
            }
        ),
        enclave_with({2: WITHDRAWN.pcr2}),
    ),
    Case(
        Weakness.PRESENCE_ONLY,
        attestation(Null=dict.fromkeys(PINNED, "false")),
        enclave_with(dict.fromkeys((0, 1, 2, 16), OTHER)),
    ),
    Case(
        Weakness.IF_EXISTS,
        attestation(StringEqualsIgnoreCaseIfExists=PINNED),
        no_enclave(),
    ),
    Case(
        Weakness.FOR_ALL_VALUES,
        attestation(ForAllValues_StringEqualsIgnoreCase=PINNED),
        no_enclave(),
    ),
    Case(
        Weakness.NEGATED_CONDITION,
        attestation(StringNotEquals=dict.fromkeys(PINNED, ZERO)),
        no_enclave(),
    ),
    Case(
        Weakness.RELEASE_NOT_ACCEPTED,
        good(RELEASE, WITHDRAWN),
        enclave_with(WITHDRAWN.registers),
    ),
    Case(Weakness.UNATTESTED_DECRYPT, attestation(), no_enclave()),
    Case(Weakness.ROOT_FULL_ACCESS, default_policy(), no_enclave(SEALER)),
    Case(
        Weakness.ADMIN_FULL_ACCESS,
        also(allow({"AWS": ADMIN.arn}, "kms:*")),
        no_enclave(ADMIN),
    ),
    Case(Weakness.WILDCARD_PRINCIPAL, releasing(to_everybody), as_outsider),
    Case(Weakness.NOT_PRINCIPAL, releasing(to_others), as_outsider),
    Case(
        Weakness.NOT_ACTION,
        also(
            {key: item for key, item in allow({"AWS": ENCLAVE.arn}, "").items() if key != "Action"}
            | {"NotAction": "kms:PutKeyPolicy"}
        ),
        no_enclave(),
    ),
    Case(
        Weakness.CREATE_GRANT,
        also(allow({"AWS": ENCLAVE.arn}, "kms:Create*")),
        by_grant,
    ),
    Case(
        Weakness.RE_ENCRYPT,
        also(allow({"AWS": ENCLAVE.arn}, "kms:ReEncrypt*")),
        by_re_encryption,
    ),
    Case(
        Weakness.UNATTESTED_DATA_KEY,
        also(
            allow(
                {"AWS": ENCLAVE.arn},
                "kms:GenerateDataKey",
                {"StringEquals": EXACT, "ForAllValues:StringEquals": {NAMES: list(CONTEXT)}},
            )
        ),
        by_data_key,
    ),
    Case(
        Weakness.MUTABLE_BY_DECRYPTER,
        also(allow({"AWS": ENCLAVE.arn}, "kms:PutKeyPolicy")),
        by_new_policy(ENCLAVE),
    ),
    Case(
        Weakness.MUTABLE_BY_CI,
        also(allow({"AWS": PIPELINE.arn}, "kms:PutKeyPolicy"), denies=True),
        by_new_policy(PIPELINE),
    ),
    Case(
        Weakness.MUTABLE_BY_ACCOUNT,
        also(allow({"AWS": f"arn:aws:iam::{CLINIC}:root"}, "kms:Put*"), denies=True),
        by_new_policy(SEALER),
    ),
    Case(
        Weakness.CONTEXT_UNBOUND,
        context(dropped(*EXACT, NAMES)),
        foreign_context({}),
        also(SEALS_ALL, denies=True),
    ),
    Case(
        Weakness.CONTEXT_INCOMPLETE,
        context(dropped(f"{IN}scope")),
        foreign_context(CONTEXT | {"casemate:scope": "clinic.example/billing"}),
        also(SEALS_ALL, denies=True),
    ),
    Case(
        Weakness.CONTEXT_NOT_EXACT,
        context(scope_by_pattern),
        foreign_context(CONTEXT | {"casemate:scope": "clinic.example/billing"}),
        also(SEALS_ALL, denies=True),
    ),
    Case(
        Weakness.CONTEXT_KEYS_OPEN,
        context(dropped(NAMES)),
        foreign_context(CONTEXT | {"patient": "other"}),
        also(SEALS_ALL, denies=True),
    ),
    Case(
        Weakness.CONTEXT_MISMATCH,
        context(
            lambda condition: condition["StringEquals"].update({f"{IN}scope": "somebody.else"})
        ),
        foreign_context(CONTEXT | {"casemate:scope": "somebody.else"}),
        also(SEALS_ALL, denies=True),
    ),
    Case(
        Weakness.ALIAS_CONDITION,
        also(
            allow({"AWS": SEALER.arn}, "kms:CreateAlias"),
            allow(
                {"AWS": SEALER.arn},
                "kms:Decrypt",
                {"ForAnyValue:StringLike": {"kms:ResourceAliases": "alias/*-released"}},
            ),
        ),
        by_alias,
        also(allow({"AWS": SEALER.arn}, "kms:CreateAlias"), denies=True),
    ),
    Case(
        Weakness.DENY_ANDS_REGISTERS,
        denying(cased("StringNotEqualsIgnoreCase")),
        enclave_with(dict.fromkeys((1, 2, 16), OTHER)),
    ),
    Case(
        Weakness.DENY_SKIPS_UNATTESTED,
        denying({"ForAnyValue:StringNotEqualsIgnoreCase": {f"{PCR}0": HEX[0]}}),
        no_enclave(),
    ),
    Case(
        Weakness.UNATTESTED_DERIVE,
        agreement(None),
        by_derivation,
        agreement({"StringEqualsIgnoreCase": PINNED}),
        spec="ECC_NIST_P256",
    ),
]
# What the double refuses to play, or what costs availability: named by the linter alone.
UNPLAYED = [
    (Weakness.MALFORMED_POLICY, {"Version": "2012-10-17"}),
    (Weakness.UNKNOWN_ELEMENT, also(allow("*", "kms:DescribeKey") | {"Conditon": {}})),
    (Weakness.UNKNOWN_OPERATOR, attestation(StringEqual=PINNED)),
    (Weakness.UNKNOWN_CONDITION_KEY, attestation(StringEquals={PCR.removesuffix(":PCR"): "x"})),
    (Weakness.REPLICATE_KEY, also(allow({"AWS": ADMIN.arn}, "kms:Replicate*"))),
    (
        Weakness.MULTI_REGION_KEY,
        also(
            allow({"AWS": ADMIN.arn}, "kms:DescribeKey")
            | {"Resource": f"arn:aws:kms:eu-central-1:{CLINIC}:key/mrk-{'0' * 32}"}
        ),
    ),
    (
        Weakness.NITROTPM_REGISTERS,
        attestation(StringEquals={f"{PCR}4".replace("PCR", "NitroTPMPCR"): HEX[0]}),
    ),
    (Weakness.REGISTER_VALUE, attestation(StringEquals=PINNED | {f"{PCR}0": HEX[0].upper()})),
    (
        Weakness.TAG_CONDITION,
        also(
            allow(
                {"AWS": ADMIN.arn},
                "kms:DescribeKey",
                {"StringEquals": {"aws:ResourceTag/stage": "live"}},
            )
        ),
    ),
]


@pytest.fixture(scope="module")
def chain() -> nitro_pki.Chain:
    return nitro_pki.issue(nitro_pki.real_shape(), now=time.time_ns() // 1_000_000)


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory, chain: nitro_pki.Chain) -> Iterator[KmsDouble]:
    directory = tmp_path_factory.mktemp("kms")
    with KmsDouble(directory, roots=chain.roots, principals=PRINCIPALS) as running:
        yield running


def lint(policy: KeyPolicy) -> list[Finding]:
    return lint_key_policy(json.dumps(policy), trust=TRUST, purpose="data", scope=SCOPE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.weakness).lower())
def test_weakness_is_real_and_named_and_mended(
    case: Case, double: KmsDouble, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    admin = double.client(ADMIN)

    def world(policy: KeyPolicy) -> World:
        usage = "ENCRYPT_DECRYPT" if case.spec == "SYMMETRIC_DEFAULT" else "KEY_AGREEMENT"
        made = admin.create_key(Policy=json.dumps(policy), KeySpec=case.spec, KeyUsage=usage)
        arn = made["KeyMetadata"]["Arn"]
        if usage == "KEY_AGREEMENT":
            return World(double, chain, rsa_key, arn, b"")
        sealed = double.client(SEALER).encrypt(
            KeyId=arn, Plaintext=SECRET, EncryptionContext=CONTEXT
        )
        return World(double, chain, rsa_key, arn, sealed["CiphertextBlob"])

    assert case.attack(world(case.weak)) == SECRET
    assert case.weakness in {finding.weakness for finding in lint(case.weak)}
    with pytest.raises(ClientError, match="AccessDenied"):
        case.attack(world(case.mended))
    if case.spec == "SYMMETRIC_DEFAULT":
        assert lint(case.mended) == []


def test_mended_key_agreement_is_named_for_its_missing_context() -> None:
    """DeriveSharedSecret has no encryption context: Casemate does not use such keys (SPEC 5.3)."""
    found = lint(agreement({"StringEqualsIgnoreCase": PINNED}))
    assert {finding.weakness for finding in found} == {Weakness.CONTEXT_UNBOUND}


@pytest.mark.parametrize(("weakness", "policy"), UNPLAYED, ids=lambda item: str(item)[:24].lower())
def test_weakness_is_named(weakness: Weakness, policy: KeyPolicy) -> None:
    assert weakness in {finding.weakness for finding in lint(policy)}


def test_replication_is_what_the_policy_allows() -> None:
    policy = also(allow({"AWS": ADMIN.arn}, "kms:Replicate*"))
    request = AccessRequest(ADMIN, "kms:ReplicateKey", "*", RequestContext(ADMIN))
    assert decide(policy, request).allowed
    assert not decide(good(), request).allowed


def test_every_weakness_has_a_case() -> None:
    named = {case.weakness for case in CASES} | {weakness for weakness, _ in UNPLAYED}
    assert set(Weakness) - named == {Weakness.TOO_WIDE}


def test_the_guide_lists_every_code() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert [code for code in Weakness if f"| `{code}` |" not in text] == []


def test_what_only_the_check_refuses_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The linter never passes what the client refuses."""

    def refuse(*_: object, **__: object) -> None:
        raise PolicyError(Code.KMS_POLICY_TOO_WIDE, "statement 1: for a new reason")

    assert lint(good()) == []
    monkeypatch.setattr(linter, "check_key_policy", refuse)
    (finding,) = lint(good())
    assert (finding.weakness, finding.where) == (Weakness.TOO_WIDE, "policy")


def test_without_a_trust_policy_any_release_is_fine() -> None:
    assert lint_key_policy(good(WITHDRAWN)) == []
    found = lint_key_policy(good(WITHDRAWN), trust=TRUST)
    assert [finding.weakness for finding in found] == [Weakness.RELEASE_NOT_ACCEPTED]


def test_findings_name_the_statement() -> None:
    (finding,) = lint(attestation())
    assert (finding.statement, finding.sid) == (4, "Decrypt1Release020")
    assert finding.where == "statement 4 'Decrypt1Release020'"
    assert set(finding.record()) == {"code", "statement", "sid", "detail", "attack", "mend"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "Statement",
                    "Effect",
                    "Action",
                    "Principal",
                    "AWS",
                    "Condition",
                    "StringEquals",
                    "IfExists",
                    f"{PCR}0",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_json_makes_the_linter_fail(value: object) -> None:
    found = lint_key_policy(json.dumps({"Version": "2012-10-17", "Statement": value}))
    assert all(finding.advice.mend for finding in found)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"Statement":[],"Statement":[]}'])
def test_no_text_makes_the_linter_fail(text: str) -> None:
    (finding,) = lint_key_policy(text)
    assert finding.weakness is Weakness.MALFORMED_POLICY


KEYS = [*PINNED, f"{PCR}3", IMAGE, *EXACT, NAMES, "kms:CallerAccount"]
VALUES = [*HEX.values(), *EXACT.values(), *CONTEXT, ZERO, "*", "true", "false"]
OPERATORS = [
    f"{quantifier}{operator}{ending}"
    for quantifier in ("", "ForAllValues:", "ForAnyValue:")
    for operator in ("StringEquals", "StringEqualsIgnoreCase", "StringNotEquals", "StringLike")
    for ending in ("", "IfExists")
] + ["Null"]
ACTIONS = ["kms:Decrypt", "kms:De*", "kms:*", "kms:CreateGrant", "kms:ReEncrypt*", "kms:Put*"]


@st.composite
def near_policies(draw: st.DrawFn) -> KeyPolicy:
    """Policies near the good one: conditions and actions of one statement changed."""
    policy = also()
    statement = draw(st.sampled_from(policy["Statement"]))
    condition = statement.setdefault("Condition", {})
    for _ in range(draw(st.integers(0, 3))):
        operator, key = draw(st.sampled_from(OPERATORS)), draw(st.sampled_from(KEYS))
        values = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=2))
        if draw(st.booleans()):
            condition.setdefault(operator, {})[key] = values if len(values) > 1 else values[0]
        else:
            present = draw(st.sampled_from(sorted(condition) or [operator]))
            condition.get(present, {}).pop(key, None)
    statement["Condition"] = {name: block for name, block in condition.items() if block}
    if draw(st.booleans()):
        statement["Action"] = draw(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=2))
    return policy


@given(near_policies())
def test_where_nothing_is_found_nobody_decrypts_without_the_release(policy: KeyPolicy) -> None:
    """Without a trust policy, too: some release's registers and an exact context are demanded."""
    if lint_key_policy(policy):
        return
    others = dict.fromkeys((0, 1, 2, 16), OTHER)
    for principal in PRINCIPALS:
        for registers in (None, {}, others, RELEASE.registers | {16: OTHER}):
            for used in ({}, CONTEXT, CONTEXT | {"more": "x"}):
                given_context = RequestContext(principal, used, registers)
                for action in ("kms:Decrypt", "kms:ReEncryptFrom", "kms:CreateGrant"):
                    request = AccessRequest(principal, action, "*", given_context)
                    assert not decide(policy, request).allowed
