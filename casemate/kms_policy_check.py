"""Refuse a key policy that is too wide for attested key release (SPEC 10, reason code of 11.3)."""

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

Purpose = Literal["data", "model", "object"]
KeyPolicy = dict[str, Any]  # the JSON object of a key policy

VERSION: Final = "2012-10-17"
PCR: Final = "kms:RecipientAttestation:PCR"
CONTEXT: Final = "kms:EncryptionContext:"
CONTEXT_KEYS: Final = "kms:EncryptionContextKeys"
REGISTERS: Final = (0, 1, 2, 16)
# Each leads from a wrapped key to its plaintext: at once, under another key, by a grant, or by a
# replica with a policy of its own. Only the first two can be attested, and DeriveSharedSecret has
# no encryption context, so no Allow of it is narrow enough. GenerateDataKey is missing on purpose:
# it hands out new keys only, to those who seal.
_RELEASING: Final = (
    "kms:Decrypt",
    "kms:DeriveSharedSecret",
    "kms:ReEncryptFrom",
    "kms:CreateGrant",
    "kms:ReplicateKey",
)
_TOP: Final = {"Id", "Statement", "Version"}
_VERSIONS: Final = {"2008-10-17", VERSION}
# Nothing else occurs in an action. Foreign letters could fold to these, and mean nothing to AWS.
_ACTION: Final = re.compile(r"[A-Za-z0-9:*?-]{1,128}")
_ALLOW_ELEMENTS: Final = frozenset(
    {"Action", "Condition", "Effect", "NotAction", "Principal", "Resource", "Sid"}
)
# Each further condition only narrows an Allow; operators outside this list are not understood.
NARROWING: Final = frozenset(
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
    context = exact_context(purpose, scope)
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
            _check_condition(name, action, statement.get("Condition"), trust.accepted, context)


def exact_context(purpose: str, scope: str) -> dict[str, str]:
    """Return the encryption context; raises PolicyError(INVALID_ARGUMENT)."""
    if purpose not in {"data", "model", "object"} or not scope:
        invalid("purpose is none of data, model, object, or scope is empty")
    if "${" in scope:
        invalid("a key policy would read '${' in the scope as a variable")
    return data_context(scope) | {"casemate:purpose": purpose}


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
    if str(parsed.get("Version", "2008-10-17")) not in _VERSIONS:
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
    if patterns is None or not all(_ACTION.fullmatch(pattern) for pattern in patterns):
        _too_wide(name, "its actions are not understood")
    listed = "Action" in statement
    for action in _RELEASING:
        if any(fnmatch.fnmatchcase(action.lower(), text.lower()) for text in patterns) == listed:
            return action
    return None


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
        wanted = _Equality("StringEquals", (CONTEXT + key).lower(), (value,))
        if wanted not in entries:
            _too_wide(name, f"it allows {action} without StringEquals {CONTEXT}{key}: {value!r}")
    named = [item for item in entries if item.key == CONTEXT_KEYS.lower()]
    exact = [item for item in named if item.operator == "ForAllValues:StringEquals"]
    if not any(set(item.values) <= context.keys() for item in exact):
        _too_wide(name, f"it allows {action} with other encryption context keys")


def _entries(name: str, condition: dict[str, object]) -> list[_Equality]:
    """Return all conditions, keys in lower case; raises on what is not understood."""
    entries: list[_Equality] = []
    for operator, block in condition.items():
        if operator not in NARROWING or not isinstance(block, dict) or not block:
            _too_wide(name, f"its condition operator {operator[:64]!r} is not understood")
        keys = [key.lower() for key in block]
        if len(set(keys)) != len(keys) or not "".join(block).isascii():
            _too_wide(name, f"its {operator} names one condition key twice, or a foreign one")
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
    for index in REGISTERS:
        key = f"{PCR}{index}".lower()
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
            (sum(demanded[i] != release[i] for i in REGISTERS), number)
            for number, release in enumerate(accepted)
        )[1]
        wrong = [f"PCR{i}" for i in REGISTERS if demanded[i] != accepted[closest][i]]
        _too_wide(name, f"it allows {action} to a release that is not accepted: {_listed(wrong)}")


def _listed(items: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(items))[:256]


def _too_wide(where: str, why: str) -> NoReturn:
    raise PolicyError(Code.KMS_POLICY_TOO_WIDE, f"{where}: {why}")


def invalid(why: str) -> NoReturn:
    """Raise PolicyError(INVALID_ARGUMENT)."""
    raise PolicyError(Code.INVALID_ARGUMENT, why)
