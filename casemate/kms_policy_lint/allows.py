"""What is weak in an Allow statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate.kms_policy_check import NARROWING
from casemate.kms_policy_lint.contexts import context_problems
from casemate.kms_policy_lint.findings import Weakness
from casemate.kms_policy_lint.management import PUT_POLICY, mutable_problems
from casemate.kms_policy_lint.registers import register_problems
from casemate.kms_policy_lint.statements import (
    CONTEXT,
    CONTEXT_KEYS,
    is_account,
    same_caller,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from casemate.attestation.policy import Release
    from casemate.kms_policy_lint.registers import Problem
    from casemate.kms_policy_lint.statements import Condition, Statement

DECRYPT: Final = "kms:Decrypt"
_DERIVE: Final = "kms:DeriveSharedSecret"
_DATA_KEYS: Final = ("kms:GenerateDataKey", "kms:GenerateDataKeyPair")
# None of these takes a Recipient: an attestation condition on them would only never hold.
_DETOURS: Final = {
    "kms:CreateGrant": Weakness.CREATE_GRANT,
    "kms:ReEncryptFrom": Weakness.RE_ENCRYPT,
    "kms:ReplicateKey": Weakness.REPLICATE_KEY,
}
_REPLICA_KEYS: Final = frozenset(
    {
        "kms:multiregion",
        "kms:multiregionkeytype",
        "kms:primaryregion",
        "kms:replicaregion",
    }
)
_ALIAS_KEYS: Final = frozenset({"kms:requestalias", "kms:resourcealiases"})
_TAG_KEYS: Final = ("aws:principaltag/", "aws:requesttag/", "aws:resourcetag/")
_ORDER: Final = (
    "Equals",
    "NotEquals",
    "LessThan",
    "LessThanEquals",
    "GreaterThan",
    "GreaterThanEquals",
)
_OPERATORS: Final = frozenset(
    f"{kind}{comparison}"
    for kind, comparisons in {
        "String": (
            "Equals",
            "NotEquals",
            "EqualsIgnoreCase",
            "NotEqualsIgnoreCase",
            "Like",
            "NotLike",
        ),
        "Arn": ("Equals", "NotEquals", "Like", "NotLike"),
        "Numeric": _ORDER,
        "Date": _ORDER,
        "": ("Bool", "BinaryEquals", "IpAddress", "NotIpAddress", "Null"),
    }.items()
    for comparison in comparisons
)


def decrypt_principals(statements: Sequence[Statement]) -> list[str]:
    """Return who may Decrypt, by statements that are more than full access to the key."""
    return [
        principal
        for statement in statements
        if statement.effect == "Allow" and not _full(statement)
        if statement.reaches(DECRYPT) or statement.reaches(_DERIVE)
        for principal in statement.principals
    ]


def allow_problems(
    statement: Statement,
    releases: Sequence[Release] | None,
    expected: Mapping[str, str] | None,
    decrypters: Sequence[str],
) -> Iterator[Problem]:
    """Yield what is weak in an Allow; ``decrypt_principals`` gives the ``decrypters``."""
    yield from _reach_problems(statement)
    full = _full(statement)
    if full:
        accounts = all(is_account(principal) for principal in statement.principals)
        weakness = Weakness.ROOT_FULL_ACCESS if accounts else Weakness.ADMIN_FULL_ACCESS
        yield weakness, f"{', '.join(statement.actions)} to {', '.join(statement.principals)}"[:256]
    else:
        yield from _release_problems(statement, releases, expected, decrypters)
    if statement.reaches(PUT_POLICY):
        for problem in mutable_problems(statement, decrypters):
            if not full or problem[0] is Weakness.MUTABLE_BY_CI:
                yield problem


def _reach_problems(statement: Statement) -> Iterator[Problem]:
    """Yield what makes an Allow cover more than it names, whatever it allows."""
    if statement.wildcard_principals and not statement.not_principal:
        yield Weakness.WILDCARD_PRINCIPAL, ", ".join(statement.wildcard_principals)[:256]
    if statement.not_action:
        yield Weakness.NOT_ACTION, ", ".join(statement.actions)[:256]
    replicas = [name for name in statement.resources if "key/mrk-" in name]
    replicas += [item.key for item in statement.conditions if item.key in _REPLICA_KEYS]
    if replicas:
        yield Weakness.MULTI_REGION_KEY, ", ".join(replicas)[:256]
    for condition in statement.conditions:
        what = f"{condition.operator} {condition.key}"
        if condition.key in _ALIAS_KEYS:
            yield Weakness.ALIAS_CONDITION, what
        if condition.key.startswith(_TAG_KEYS):
            yield Weakness.TAG_CONDITION, what


def _full(statement: Statement) -> bool:
    """Whether one pattern covers use and management of the key, unattested."""
    if statement.effect != "Allow" or statement.not_action or statement.attestation:
        return False
    alone = (pattern for pattern in statement.actions if "*" in pattern)
    return any(pattern.lower() in {"*", "kms:*"} for pattern in alone)


def _release_problems(
    statement: Statement,
    releases: Sequence[Release] | None,
    expected: Mapping[str, str] | None,
    decrypters: Sequence[str],
) -> Iterator[Problem]:
    detours = statement.reached(_DETOURS)
    if not statement.attested:
        yield from ((_DETOURS[action], action) for action in detours)
    opening = statement.reached((DECRYPT, _DERIVE))
    data_keys = statement.reached(_DATA_KEYS)
    if opening or detours or data_keys:
        yield from unknown_operators(statement, only_narrowing=True)
    if statement.attestation and (opening or detours or data_keys):
        yield from register_problems(statement, releases)
    elif opening or data_keys:
        yield from _unattested(statement, opening, data_keys, expected, decrypters)
    if opening or (detours and statement.attested):
        yield from context_problems(statement, expected)


def _unattested(
    statement: Statement,
    opening: Sequence[str],
    data_keys: Sequence[str],
    expected: Mapping[str, str] | None,
    decrypters: Sequence[str],
) -> Iterator[Problem]:
    if DECRYPT in opening:
        yield Weakness.UNATTESTED_DECRYPT, f"{DECRYPT} to {', '.join(statement.principals)}"[:256]
    if _DERIVE in opening:
        yield Weakness.UNATTESTED_DERIVE, f"{_DERIVE} to {', '.join(statement.principals)}"[:256]
    enclaves = [
        principal
        for principal in statement.principals
        if any(same_caller(principal, other) for other in decrypters)
    ]
    # A new key opens nothing that exists: those who own the data make them, for one exact context.
    if data_keys and (enclaves or any(context_problems(statement, expected))):
        who = ", ".join(enclaves or statement.principals)
        yield Weakness.UNATTESTED_DATA_KEY, f"{', '.join(data_keys)} to {who}"[:256]


def unknown_operators(statement: Statement, *, only_narrowing: bool = False) -> Iterator[Problem]:
    """Yield operators that IAM does not have and, where keys are released, the check neither."""
    for condition in statement.conditions:
        what = f"{condition.operator} {condition.key}"
        if condition.name not in _OPERATORS:
            yield Weakness.UNKNOWN_OPERATOR, what
        elif only_narrowing and not _has_own_rule(condition):
            if condition.if_exists:
                yield Weakness.IF_EXISTS, what
            elif condition.operator not in NARROWING:
                yield Weakness.UNKNOWN_OPERATOR, what


def _has_own_rule(condition: Condition) -> bool:
    return condition.attests or condition.key.startswith(CONTEXT) or condition.key == CONTEXT_KEYS
