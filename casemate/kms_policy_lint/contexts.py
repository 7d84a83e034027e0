"""What a statement demands of the encryption context (SPEC 5.3, 8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate.kms_policy_lint.findings import Weakness
from casemate.kms_policy_lint.statements import CONTEXT, CONTEXT_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casemate.kms_policy_lint.registers import Problem
    from casemate.kms_policy_lint.statements import Condition, Statement

_NAMES: Final = ("casemate:v", "casemate:purpose", "casemate:scope")
# What a value must be when nobody says which purpose and scope the key is for.
_ANY: Final[dict[str, frozenset[str]]] = {
    "casemate:v": frozenset({"1"}),
    "casemate:purpose": frozenset({"data", "model", "object"}),
}


def context_problems(statement: Statement, expected: Mapping[str, str] | None) -> Iterator[Problem]:
    """Yield what is weak in the encryption context conditions of a statement."""
    own = [item for item in statement.conditions if item.key.startswith(CONTEXT)]
    keys = [item for item in statement.conditions if item.key == CONTEXT_KEYS]
    if not own:
        yield Weakness.CONTEXT_UNBOUND, "no condition on kms:EncryptionContext"
        return
    for condition in own:
        yield from _operator_problems(condition)
    missing = [name for name in _NAMES if all(item.key != CONTEXT + name for item in own)]
    if missing:
        yield Weakness.CONTEXT_INCOMPLETE, f"no condition on {', '.join(missing)}"
    for name in _NAMES:
        values = [item.values for item in own if item.key == CONTEXT + name and _exact(item)]
        yield from _value_problems(name, values, expected)
    if not any(_closed(item) for item in keys):
        yield Weakness.CONTEXT_KEYS_OPEN, "kms:EncryptionContextKeys is not bounded"


def _exact(condition: Condition) -> bool:
    single = len(condition.values) == 1 and "${" not in condition.values[0]
    return condition.operator == "StringEquals" and single


def _closed(condition: Condition) -> bool:
    exact = condition.operator == "ForAllValues:StringEquals"
    return exact and set(condition.values) <= set(_NAMES)


def _operator_problems(condition: Condition) -> Iterator[Problem]:
    what = f"{condition.operator} {condition.key}"
    if condition.if_exists:
        yield Weakness.IF_EXISTS, what
    elif condition.quantifier == "ForAllValues":
        yield Weakness.FOR_ALL_VALUES, what
    elif condition.negated:
        yield Weakness.NEGATED_CONDITION, what
    elif not _exact(condition):
        yield Weakness.CONTEXT_NOT_EXACT, what


def _value_problems(
    name: str, values: list[tuple[str, ...]], expected: Mapping[str, str] | None
) -> Iterator[Problem]:
    wanted = frozenset({expected[name]}) if expected is not None else _ANY.get(name)
    if wanted is not None and values and any(item[0] not in wanted for item in values):
        yield Weakness.CONTEXT_MISMATCH, f"{name} is {values[0][0][:64]!r}"
