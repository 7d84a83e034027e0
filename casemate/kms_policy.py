"""Key policies for attested key release: write a narrow one, refuse a wide one (SPEC 10).

A key serves one purpose and one scope (SPEC 5.3, 8.2). ``attested_key_policy`` writes the policy of
such a key; ``check_key_policy`` judges any policy that a key's owner shows, before a client seals
data under that key or a publisher seals a model.
"""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from casemate import limits
from casemate.errors import Code, PolicyError
from casemate.kms_context import data_context

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casemate.attestation.policy import Release, TrustPolicy

Purpose = Literal["data", "model"]
KeyPolicy = dict[str, Any]  # the JSON object of a key policy

_VERSION: Final = "2012-10-17"
_PCR: Final = "kms:RecipientAttestation:PCR"
_CONTEXT: Final = "kms:EncryptionContext:"
_CONTEXT_KEYS: Final = "kms:EncryptionContextKeys"
_REGISTERS: Final = (0, 1, 2, 16)
_PRINCIPAL: Final = re.compile(
    r"arn:aws(?:-cn|-us-gov)?:iam::[0-9]{12}:(?:root|user/[\w+=,.@/-]+|role/[\w+=,.@/-]+)",
    re.ASCII,
)
# What management needs. None of it reads a key, uses it, or passes the right to use it on; but
# PutKeyPolicy can replace this very policy.
_MANAGEMENT: Final = (
    "kms:CancelKeyDeletion",
    "kms:DescribeKey",
    "kms:DisableKey",
    "kms:DisableKeyRotation",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:ListResourceTags",
    "kms:PutKeyPolicy",
    "kms:RevokeGrant",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateKeyDescription",
)
# Each leads from a wrapped key to its plaintext: at once, under another key, by a grant, or by a
# replica with a policy of its own. Only Decrypt can be attested.
_RELEASING: Final = ("kms:Decrypt", "kms:ReEncryptFrom", "kms:CreateGrant", "kms:ReplicateKey")
_NEVER: Final = ("kms:CreateGrant", "kms:ReEncrypt*", "kms:ReplicateKey")


def attested_key_policy(
    *,
    account_admin: str,
    decrypt_principal: str,
    releases: Sequence[Release],
    purpose: Purpose,
    scope: str,
    encrypt_principals: Sequence[str],
) -> KeyPolicy:
    """Return the least-privilege policy of a key for one purpose and scope.

    Args:
        account_admin: manages the key and may replace this policy, but not use the key. An account
            root stands for whomever that account's IAM lets manage keys: a role is narrower.
        decrypt_principal: whose credentials the enclave uses; these alone release nothing.
        releases: what may decrypt; one statement each, so that registers of two never mix.
        purpose: ``data`` for sessions (SPEC 5.3), ``model`` for sealed models (SPEC 8.2).
        scope: the audience, or ``<publisher, hex>/<name>``.
        encrypt_principals: may make data keys in this context and read the policy.

    Principals are ARNs of users, roles or account roots. Raises PolicyError(INVALID_ARGUMENT).
    """
    context = _context(purpose, scope)
    for principal in (account_admin, decrypt_principal, *encrypt_principals):
        if _PRINCIPAL.fullmatch(principal) is None:
            _invalid(f"not the ARN of a user, a role or an account: {principal[:128]!r}")
    if not encrypt_principals or not 1 <= len(releases) <= limits.POLICY_RELEASES_MAX:
        _invalid("no principal that encrypts, or not 1 to 16 releases")
    statements = [
        _allow("Manage", account_admin, list(_MANAGEMENT)),
        _allow("ReadPolicy", list(encrypt_principals), ["kms:DescribeKey", "kms:GetKeyPolicy"]),
        _allow("Seal", list(encrypt_principals), ["kms:Encrypt", "kms:GenerateDataKey"], context),
        *(
            _allow(_sid(number, release), decrypt_principal, "kms:Decrypt", context, release)
            for number, release in enumerate(releases, 1)
        ),
        *(_deny_other_values(index, releases) for index in _REGISTERS),
        _statement("DenyWhatCannotBeAttested", "Deny", "*", list(_NEVER)),
    ]
    policy = {"Version": _VERSION, "Statement": statements}
    if len(json.dumps(policy, separators=(",", ":"))) > limits.KEY_POLICY_MAX:
        _invalid("too many releases for one key policy of 32 KiB")
    return policy


def check_key_policy(
    policy: KeyPolicy | str, trust: TrustPolicy, *, purpose: Purpose, scope: str
) -> None:
    """Refuse a key policy under which anything but an accepted release could read data.

    Every Allow that reaches a releasing action must demand, by StringEquals or
    StringEqualsIgnoreCase, the four registers of one release of ``trust`` and the exact encryption
    context of ``purpose`` and ``scope``. What this check does not understand counts as too wide;
    Deny statements are no excuse and are not read.

    It judges one text. It cannot see grants made before, nor what whoever may call PutKeyPolicy
    does next, nor whether the text is the policy in force: fetch it with GetKeyPolicy, and watch
    the key's CloudTrail for PutKeyPolicy and CreateGrant.

    Raises PolicyError(KMS_POLICY_TOO_WIDE), which names the statement and what it lacks, and
    PolicyError(INVALID_ARGUMENT) for a scope that no key policy can state exactly.
    """
    context = _context(purpose, scope)
    for name, statement in _statements(policy):
        effect = statement.get("Effect")
        if effect == "Deny":
            continue
        if effect != "Allow":
            _too_wide(name, "its Effect is neither Allow nor Deny")
        unknown = statement.keys() - _ALLOW_ELEMENTS
        if unknown:
            _too_wide(name, f"it has elements that are not understood: {_listed(unknown)}")
        action = _reached(name, statement)
        if action is not None:
            _check_condition(name, action, statement.get("Condition"), trust.releases, context)


# Writing


def _context(purpose: str, scope: str) -> dict[str, str]:
    if purpose not in {"data", "model"} or not scope:
        _invalid("purpose is neither data nor model, or scope is empty")
    if "${" in scope:
        _invalid("a key policy would read '${' in the scope as a variable")
    return data_context(scope) | {"casemate:purpose": purpose}


def _statement(sid: str, effect: str, principal: str | list[str], action: object) -> KeyPolicy:
    who: object = "*" if principal == "*" else {"AWS": principal}
    return {"Sid": sid, "Effect": effect, "Principal": who, "Action": action, "Resource": "*"}


def _allow(
    sid: str,
    principal: str | list[str],
    action: str | list[str],
    context: Mapping[str, str] | None = None,
    release: Release | None = None,
) -> KeyPolicy:
    statement = _statement(sid, "Allow", principal, action)
    condition: dict[str, dict[str, object]] = {}
    if context is not None:
        condition["StringEquals"] = {_CONTEXT + key: value for key, value in context.items()}
        # Condition keys ignore case, their values do not: this pins the names' case, too.
        condition["ForAllValues:StringEquals"] = {_CONTEXT_KEYS: sorted(context)}
    if release is not None:
        registers = release.registers.items()
        condition["StringEqualsIgnoreCase"] = {f"{_PCR}{i}": value.hex() for i, value in registers}
    return statement | ({"Condition": condition} if condition else {})


def _deny_other_values(index: int, releases: Sequence[Release]) -> KeyPolicy:
    """Deny Decrypt to everybody whose register is none of the releases', or is not attested.

    A negated operator holds on a missing key. This outlives a wide Allow or a grant added later.
    """
    values = sorted({release.registers[index].hex() for release in releases})
    statement = _statement(f"DenyOtherPCR{index}", "Deny", "*", "kms:Decrypt")
    condition = {"StringNotEqualsIgnoreCase": {f"{_PCR}{index}": values}}
    return statement | {"Condition": condition}


def _sid(number: int, release: Release) -> str:
    return f"Decrypt{number}Release" + re.sub(r"[^A-Za-z0-9]", "", release.name)


# Judging

_TOP: Final = {"Id", "Statement", "Version"}
_VERSIONS: Final = {"2008-10-17", _VERSION}
_ALLOW_ELEMENTS: Final = frozenset(
    {"Action", "Condition", "Effect", "NotAction", "Principal", "Resource", "Sid"}
)
# Each further condition only narrows an Allow; operators outside this list are not understood.
_NARROWING: Final = frozenset(
    {
        "ArnEquals",
        "ArnLike",
        "Bool",
        "ForAllValues:StringEquals",
        "Null",
        "StringEquals",
        "StringEqualsIgnoreCase",
        "StringLike",
    }
)


@dataclass(frozen=True, slots=True)
class _Equality:
    """A condition ``key`` must have one of ``values``; from which operator it comes."""

    operator: str
    key: str
    values: tuple[str, ...]


def _statements(policy: KeyPolicy | str) -> list[tuple[str, KeyPolicy]]:
    """Return the statements with a name for each."""
    parsed = _parse(policy) if isinstance(policy, str) else policy
    if not isinstance(parsed, dict) or parsed.keys() - _TOP:
        _too_wide("policy", "it is not an object of Id, Statement and Version")
    if parsed.get("Version", "2008-10-17") not in _VERSIONS:
        _too_wide("policy", "its Version is not known")
    listed = parsed.get("Statement")
    statements = listed if isinstance(listed, list) else [listed]
    if not statements or not all(isinstance(item, dict) for item in statements):
        _too_wide("policy", "it has no statements")
    return [(_name(number, item), item) for number, item in enumerate(statements, 1)]


def _parse(text: str) -> object:
    if len(text) > limits.KEY_POLICY_MAX:
        _too_wide("policy", "it is larger than a key policy can be")
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        _too_wide("policy", "it is not JSON, or repeats a key")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        msg = "duplicate key"
        raise ValueError(msg)
    return result


def _name(number: int, statement: KeyPolicy) -> str:
    sid = statement.get("Sid")
    return f"statement {sid[:64]!r}" if isinstance(sid, str) else f"statement {number}"


def _texts(value: object) -> list[str] | None:
    items = value if isinstance(value, list) else [value]
    texts = [item for item in items if isinstance(item, str)]
    return texts if items and len(texts) == len(items) else None


def _reached(name: str, statement: KeyPolicy) -> str | None:
    """Return the first releasing action that an Allow reaches, or None."""
    if ("Action" in statement) == ("NotAction" in statement):
        _too_wide(name, "it does not have exactly one of Action and NotAction")
    patterns = _texts(statement.get("Action", statement.get("NotAction")))
    if patterns is None:
        _too_wide(name, "its actions are not text")
    listed = "Action" in statement
    for action in _RELEASING:
        if any(_matches(action, pattern) for pattern in patterns) == listed:
            return action
    return None


def _matches(action: str, pattern: str) -> bool:
    escaped = pattern.lower().replace("[", "[[]")
    return fnmatch.fnmatchcase(action.lower(), escaped)


def _check_condition(
    name: str,
    action: str,
    condition: object,
    releases: Sequence[Release],
    context: Mapping[str, str],
) -> None:
    if not isinstance(condition, dict) or not condition:
        _too_wide(name, f"it allows {action} without attestation")
    entries = _entries(name, condition)
    _check_registers(name, action, entries, releases)
    for key, value in context.items():
        wanted = _Equality("StringEquals", (_CONTEXT + key).lower(), (value,))
        if wanted not in entries:
            _too_wide(name, f"it allows {action} without StringEquals {_CONTEXT}{key}: {value!r}")
    named = [item for item in entries if item.key == _CONTEXT_KEYS.lower()]
    exact = [item for item in named if item.operator == "ForAllValues:StringEquals"]
    if not any(set(item.values) <= context.keys() for item in exact):
        _too_wide(name, f"it allows {action} with other encryption context keys")


def _entries(name: str, condition: dict[str, object]) -> list[_Equality]:
    """Return all conditions, keys in lower case; raises on what is not understood."""
    entries: list[_Equality] = []
    for operator, block in condition.items():
        if operator not in _NARROWING or not isinstance(block, dict) or not block:
            _too_wide(name, f"its condition operator {operator[:64]!r} is not understood")
        keys = [key.lower() for key in block]
        if len(set(keys)) != len(keys):
            _too_wide(name, f"its {operator} names one condition key twice")
        for key, value in block.items():
            entries.append(_Equality(operator, key.lower(), _condition_values(name, key, value)))
    return entries


def _condition_values(name: str, key: str, value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, (str, bool)) for item in items):
        _too_wide(name, f"the values of {key[:64]!r} are not text")
    return tuple(str(item) for item in items)


def _check_registers(
    name: str, action: str, entries: list[_Equality], releases: Sequence[Release]
) -> None:
    """Require the four registers of one release: one value each, so that none can be mixed."""
    demanded: dict[int, str] = {}
    for index in _REGISTERS:
        key = f"{_PCR}{index}".lower()
        equal = [
            item.values[0].lower()
            for item in entries
            if item.key == key and item.operator.startswith("StringEq") and len(item.values) == 1
        ]
        if not equal:
            _too_wide(name, f"it allows {action} without one value of PCR{index}")
        demanded[index] = equal[0]
    accepted = [{i: v.hex() for i, v in release.registers.items()} for release in releases]
    if demanded not in accepted:
        closest = min(
            (sum(demanded[i] != release[i] for i in _REGISTERS), number)
            for number, release in enumerate(accepted)
        )[1]
        wrong = [f"PCR{i}" for i in _REGISTERS if demanded[i] != accepted[closest][i]]
        _too_wide(name, f"it allows {action} to a release that is not accepted: {_listed(wrong)}")


def _listed(items: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(items))[:256]


def _too_wide(where: str, why: str) -> NoReturn:
    raise PolicyError(Code.KMS_POLICY_TOO_WIDE, f"{where}: {why}")


def _invalid(why: str) -> NoReturn:
    raise PolicyError(Code.INVALID_ARGUMENT, why)
