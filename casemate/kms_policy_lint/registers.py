"""What a statement demands of the attestation document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from casemate.kms_policy_check import REGISTERS
from casemate.kms_policy_lint.findings import Weakness
from casemate.kms_policy_lint.statements import IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casemate.attestation.policy import Release
    from casemate.kms_policy_lint.statements import Condition, Statement

Problem = tuple[Weakness, str]

_VALUE: Final = re.compile(r"[0-9a-fA-F]{96}")
_EQUAL: Final = ("StringEquals", "StringEqualsIgnoreCase")
_IDENTITY: Final = frozenset({3, 4, 8})
_BOOT: Final = frozenset({0, 1, 2})


def register_problems(
    statement: Statement, releases: Sequence[Release] | None
) -> Iterator[Problem]:
    """Yield what is weak in the attestation conditions of a statement that has some."""
    for condition in statement.attestation:
        yield from _condition_problems(condition)
    named = {item.register for item in statement.attestation if item.register is not None}
    yield from _coverage_problems(statement, named)
    pinned = _pinned(statement)
    if releases is not None and set(REGISTERS) <= pinned.keys():
        accepted = [{i: v.hex() for i, v in release.registers.items()} for release in releases]
        demanded = {index: pinned[index] for index in REGISTERS}
        if demanded not in accepted:
            yield Weakness.RELEASE_NOT_ACCEPTED, _difference(demanded, accepted)


def _condition_problems(condition: Condition) -> Iterator[Problem]:
    what = f"{condition.operator} {condition.key}"
    if condition.nitrotpm:
        yield Weakness.NITROTPM_REGISTERS, what
        return
    if condition.register is None:
        yield Weakness.UNKNOWN_CONDITION_KEY, what
        return
    if condition.if_exists:
        yield Weakness.IF_EXISTS, what
    if condition.quantifier == "ForAllValues":
        yield Weakness.FOR_ALL_VALUES, what
    if condition.negated:
        yield Weakness.NEGATED_CONDITION, what
    elif condition.name == "Null":
        yield Weakness.PRESENCE_ONLY, what
    else:
        yield from _value_problems(condition, what)


def _value_problems(condition: Condition, what: str) -> Iterator[Problem]:
    values = condition.values
    if condition.name not in _EQUAL:
        yield Weakness.REGISTER_WILDCARD, what
        return
    if any(value and not value.strip("0") for value in values):
        yield Weakness.ZERO_REGISTER, what
    if any(_VALUE.fullmatch(value) is None for value in values):
        yield Weakness.REGISTER_VALUE, f"{what}: not 96 hex digits"
    elif condition.name == "StringEquals" and any(value != value.lower() for value in values):
        yield Weakness.REGISTER_VALUE, f"{what}: upper case under StringEquals"
    if len(values) > 1:
        yield Weakness.RELEASES_MIXED, f"{what}: {len(values)} values"


def _coverage_problems(statement: Statement, named: set[int]) -> Iterator[Problem]:
    """Yield which registers nobody looks at; one that is looked at badly has its own finding."""
    if not named:
        return
    image_alone = {item.key for item in statement.attestation if item.register == 0} == {IMAGE}
    if named <= _IDENTITY:
        yield Weakness.IDENTITY_REGISTERS_ONLY, _names(named)
        return
    if named == {0}:
        weakness = Weakness.IMAGE_SHA384_ONLY if image_alone else Weakness.PCR0_ONLY
        yield weakness, "PCR1, PCR2 and PCR16 are free"
        return
    missing = _BOOT - named
    if image_alone:
        yield Weakness.IMAGE_SHA384_ONLY, "ImageSha384 stands in for PCR0"
    if missing:
        yield Weakness.REGISTER_MISSING, _names(missing)
    if REGISTERS[-1] not in named:
        yield Weakness.PCR16_MISSING, f"{_names(named)} alone"


def _pinned(statement: Statement) -> dict[int, str]:
    """Return the registers that have one value, in lower case."""
    return {
        item.register: item.values[0].lower()
        for item in statement.attestation
        if item.register is not None and item.operator in _EQUAL and len(item.values) == 1
    }


def _difference(demanded: dict[int, str], accepted: list[dict[int, str]]) -> str:
    wrong = [
        {index for index in REGISTERS if demanded[index] != release[index]} for release in accepted
    ]
    closest: set[int] = min(wrong, key=len, default=set())
    return f"{_names(closest)} of no accepted release"


def _names(registers: set[int] | frozenset[int]) -> str:
    return ", ".join(f"PCR{index}" for index in sorted(registers))
