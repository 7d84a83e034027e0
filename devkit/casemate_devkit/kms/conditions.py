"""Condition blocks of key policies, evaluated as IAM does.

Operators of one block and keys of one operator are ANDed, values are ORed; a negated operator holds
on a missing key; ``ForAllValues`` holds on no values and ``ForAnyValue`` does not. What is not in
the tables below is *unknown*: never satisfied in an Allow, always satisfied in a Deny.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casemate_devkit.kms.principals import Principal

_OPERATOR = re.compile(r"(?:(ForAllValues|ForAnyValue):)?([A-Z][A-Za-z]+?)(IfExists)?")
_REGISTER = re.compile(r"kms:recipientattestation:(?:pcr([0-9]|[12][0-9]|3[01])|imagesha384)")
_CONTEXT_KEYS = "kms:encryptioncontextkeys"
_CONTEXT = "kms:encryptioncontext:"
_MULTIVALUED = {_CONTEXT_KEYS, "kms:grantoperations", "kms:resourcealiases"}
_KNOWN = _MULTIVALUED | {
    "aws:principalaccount",
    "aws:principalarn",
    "aws:securetransport",
    "kms:calleraccount",
    "kms:granteeprincipal",
    "kms:grantisforawsresource",
    "kms:requestalias",
    "kms:retiringprincipal",
    "kms:viaservice",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One condition that does not hold, or that is not understood."""

    operator: str
    key: str
    policy: tuple[str, ...]
    request: tuple[str, ...]

    @property
    def register(self) -> int | None:
        """The PCR the condition is about, if it is about one."""
        match = _REGISTER.fullmatch(self.key.lower())
        return int(match[1] or 0) if match else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a condition block says; ``unknown`` is not empty if parts were not understood."""

    failures: tuple[Failure, ...] = ()
    unknown: tuple[str, ...] = ()
    holding: tuple[Failure, ...] = ()

    @property
    def satisfied(self) -> bool | None:
        """True, False, or None if the answer depends on what is not understood."""
        if self.failures:
            return False
        return None if self.unknown else True


class RequestContext:
    """The condition keys of one request; names are case-insensitive, as IAM's are."""

    def __init__(
        self,
        principal: Principal,
        encryption_context: Mapping[str, str] | None = None,
        registers: Mapping[int, bytes] | None = None,
        more: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Take what a request says; ``more`` has further keys with their values."""
        self._values: dict[str, list[str]] = {
            key.lower(): list(values) for key, values in (more or {}).items()
        }
        self._values |= {
            "aws:principalaccount": [principal.account],
            "aws:principalarn": [principal.policy_arn],
            "aws:securetransport": ["true"],
            "kms:calleraccount": [principal.account],
        }
        for name, value in (encryption_context or {}).items():
            self._values.setdefault(_CONTEXT + name.lower(), []).append(value)
            self._values.setdefault(_CONTEXT_KEYS, []).append(name)
        for index, register in (registers or {}).items():
            self._values[f"kms:recipientattestation:pcr{index}"] = [register.hex()]
            if index == 0:
                self._values["kms:recipientattestation:imagesha384"] = [register.hex()]

    def values(self, key: str) -> tuple[str, ...]:
        """Return the request's values of ``key``; empty if the request has none."""
        return tuple(self._values.get(key.lower(), ()))


def evaluate(condition: object, context: RequestContext) -> Outcome:
    """Judge one Condition element; an empty one is satisfied."""
    if not isinstance(condition, dict):
        return Outcome(unknown=("Condition",))
    failures: list[Failure] = []
    holding: list[Failure] = []
    unknown: list[str] = []
    for operator, block in condition.items():
        if not isinstance(block, dict) or not block:
            unknown.append(operator)
            continue
        for key, wanted in block.items():
            values = _values(wanted)
            actual = context.values(key)
            verdict = None if values is None else _judge(operator, key, values, actual)
            entry = Failure(operator, key, values or (), actual)
            if verdict is None:
                unknown.append(f"{operator} {key}")
            else:
                (holding if verdict else failures).append(entry)
    return Outcome(tuple(failures), tuple(unknown), tuple(holding))


def _values(wanted: object) -> tuple[str, ...] | None:
    """Return policy values as text; None for other types and for policy variables."""
    items = wanted if isinstance(wanted, list) else [wanted]
    texts = [
        item if isinstance(item, str) else str(item).lower()
        for item in items
        if isinstance(item, (bool, str))
    ]
    understood = texts and len(texts) == len(items) and not any("${" in text for text in texts)
    return tuple(texts) if understood else None


def _known(key: str) -> bool:
    lower = key.lower()
    in_context = lower.startswith(_CONTEXT) and len(lower) > len(_CONTEXT)
    return lower in _KNOWN or in_context or _REGISTER.fullmatch(lower) is not None


def _equal(actual: str, wanted: str) -> bool:
    return actual == wanted


def _equal_ignoring_case(actual: str, wanted: str) -> bool:
    return actual.lower() == wanted.lower()


def like(actual: str, pattern: str) -> bool:
    """Match IAM's wildcards: ``*`` any characters, ``?`` one; everything else is itself."""
    return fnmatch.fnmatchcase(actual, pattern.replace("[", "[[]"))


def _arn_like(actual: str, pattern: str) -> bool:
    """Match ARNs: wildcards within each of the six parts and never across a colon."""
    parts, patterns = actual.split(":", 5), pattern.split(":", 5)
    pairs = zip(parts, patterns, strict=False)
    return len(parts) == len(patterns) and all(like(part, text) for part, text in pairs)


_OPERATORS: dict[str, tuple[Callable[[str, str], bool], bool]] = {
    "StringEquals": (_equal, False),
    "StringNotEquals": (_equal, True),
    "StringEqualsIgnoreCase": (_equal_ignoring_case, False),
    "StringNotEqualsIgnoreCase": (_equal_ignoring_case, True),
    "StringLike": (like, False),
    "StringNotLike": (like, True),
    "Bool": (_equal_ignoring_case, False),
    "ArnEquals": (_arn_like, False),
    "ArnLike": (_arn_like, False),
    "ArnNotEquals": (_arn_like, True),
    "ArnNotLike": (_arn_like, True),
}


def _judge(
    operator: str, key: str, wanted: tuple[str, ...], actual: tuple[str, ...]
) -> bool | None:
    """Return whether one operator holds for one key; None if it is not understood."""
    match = _OPERATOR.fullmatch(operator)
    if match is None or not _known(key):
        return None
    quantifier, name, if_exists = match.groups()
    if operator == "Null":
        return _null(wanted, actual)
    if name not in _OPERATORS:
        return None
    compare, negated = _OPERATORS[name]
    if not actual:
        return _on_missing(quantifier, negated=negated, if_exists=if_exists is not None)
    verdicts = [any(compare(value, item) for item in wanted) != negated for value in actual]
    if quantifier is not None:
        return all(verdicts) if quantifier == "ForAllValues" else any(verdicts)
    multivalued = len(actual) > 1 or key.lower() in _MULTIVALUED
    return None if multivalued else verdicts[0]


def _null(wanted: tuple[str, ...], actual: tuple[str, ...]) -> bool | None:
    if not set(wanted) <= {"true", "false"}:
        return None
    return ("false" if actual else "true") in wanted


def _on_missing(quantifier: str | None, *, negated: bool, if_exists: bool) -> bool:
    if if_exists or quantifier == "ForAllValues":
        return True
    return negated and quantifier is None
