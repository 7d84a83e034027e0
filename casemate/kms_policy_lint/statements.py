"""One statement of a key policy, taken apart for the linter. Nothing here raises on odd input."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

ATTESTATION: Final = "kms:recipientattestation"
IMAGE: Final = f"{ATTESTATION}:imagesha384"
CONTEXT: Final = "kms:encryptioncontext:"
CONTEXT_KEYS: Final = "kms:encryptioncontextkeys"

_REGISTER: Final = re.compile(rf"{ATTESTATION}:pcr([0-9]|[12][0-9]|3[01])")
_NITROTPM: Final = re.compile(rf"{ATTESTATION}:nitrotpmpcr[0-9]{{1,2}}")
_OPERATOR: Final = re.compile(r"(?:(ForAllValues|ForAnyValue):)?([A-Za-z]+?)(IfExists)?")
_ACTION: Final = re.compile(r"[A-Za-z0-9:*?-]{1,128}")
_ACCOUNT: Final = re.compile(r"(?:arn:aws[a-z-]*:iam::)?([0-9]{12})(?::root)?")
_SESSION: Final = re.compile(r"(arn:aws[a-z-]*):sts:(:[0-9]{12}):assumed-role/([^/]+)/.+")


@dataclass(frozen=True, slots=True)
class Condition:
    """One key of one operator with its values; ``key`` in lower case."""

    operator: str
    key: str
    values: tuple[str, ...]

    @property
    def _parts(self) -> tuple[str, str, str]:
        match = _OPERATOR.fullmatch(self.operator)
        return (match[1] or "", match[2], match[3] or "") if match else ("", self.operator, "")

    @property
    def quantifier(self) -> str:
        """``ForAllValues``, ``ForAnyValue`` or empty."""
        return self._parts[0]

    @property
    def name(self) -> str:
        """The operator without quantifier and IfExists."""
        return self._parts[1]

    @property
    def if_exists(self) -> bool:
        """Whether a missing key is accepted by name."""
        return bool(self._parts[2])

    @property
    def negated(self) -> bool:
        """Whether the operator holds for what is not listed, a missing key included."""
        return "Not" in self.name

    @property
    def attests(self) -> bool:
        """Whether it is about an attestation document, of whatever kind."""
        return self.key.startswith(ATTESTATION)

    @property
    def register(self) -> int | None:
        """The enclave register it is about; ImageSha384 is register 0."""
        match = _REGISTER.fullmatch(self.key)
        return int(match[1]) if match else 0 if self.key == IMAGE else None

    @property
    def nitrotpm(self) -> bool:
        """Whether it is about a register of an instance's NitroTPM."""
        return _NITROTPM.fullmatch(self.key) is not None

    @property
    def demands_document(self) -> bool:
        """Whether it fails for requests without an enclave's attestation document."""
        if self.register is None or self.if_exists or self.quantifier == "ForAllValues":
            return False
        if self.name == "Null":
            return set(self.values) == {"false"}
        return not self.negated or self.quantifier == "ForAnyValue"


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement's parts as far as they are understood, and what is not."""

    number: int
    sid: str | None
    effect: str | None
    principals: tuple[str, ...]
    not_principal: bool
    actions: tuple[str, ...]
    not_action: bool
    resources: tuple[str, ...]
    conditions: tuple[Condition, ...]
    unknown: tuple[str, ...]
    odd_conditions: tuple[str, ...]

    def reaches(self, action: str) -> bool:
        """Whether the statement covers ``action``, as ``kms:Decrypt``."""
        named = any(
            fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in self.actions
        )
        return named != self.not_action

    def reached(self, actions: Iterable[str]) -> list[str]:
        """Return those of ``actions`` that the statement covers."""
        return [action for action in actions if self.reaches(action)]

    @property
    def attestation(self) -> list[Condition]:
        """The conditions about attestation documents."""
        return [item for item in self.conditions if item.attests]

    @property
    def attested(self) -> bool:
        """Whether no request without an enclave's document passes."""
        return any(item.demands_document for item in self.conditions)

    @property
    def wildcard_principals(self) -> list[str]:
        """Principals that are patterns."""
        return [item for item in self.principals if "*" in item or "?" in item]


def read_statement(number: int, item: dict[str, Any]) -> Statement:
    """Take one statement apart."""
    unknown = sorted(set(item) - _ELEMENTS)
    sid, effect = item.get("Sid"), item.get("Effect")
    if effect not in ("Allow", "Deny"):
        unknown.append("Effect is neither Allow nor Deny")
    not_action, not_principal = "NotAction" in item, "NotPrincipal" in item
    if ("Action" in item) == not_action or ("Principal" in item) == not_principal:
        unknown.append("not exactly one of Action and NotAction, of Principal and NotPrincipal")
    actions = _texts(item.get("NotAction") if not_action else item.get("Action"))
    if not actions or not all(_ACTION.fullmatch(action) for action in actions):
        unknown.append("the actions are no names of actions")
    principals = _principals(item.get("NotPrincipal") if not_principal else item.get("Principal"))
    if not principals:
        unknown.append("the principals are not understood")
    conditions, odd = _conditions(item.get("Condition", {}))
    return Statement(
        number=number,
        sid=sid[:64] if isinstance(sid, str) else None,
        effect=effect if isinstance(effect, str) else None,
        principals=principals,
        not_principal=not_principal,
        actions=actions,
        not_action=not_action,
        resources=_texts(item.get("Resource", "*")),
        conditions=conditions,
        unknown=tuple(text[:64] for text in unknown),
        odd_conditions=odd,
    )


def same_caller(first: str, second: str) -> bool:
    """Whether two principals can be one caller: equal, or one stands for the other's account."""
    one, other = _role(first), _role(second)
    accounts = (account_of(first), account_of(second))
    if "*" in {first, second} or one == other:
        return True
    return (is_account(first) or is_account(second)) and accounts[0] == accounts[1]


def is_account(principal: str) -> bool:
    """Whether a principal stands for a whole account."""
    return _ACCOUNT.fullmatch(principal) is not None


def account_of(principal: str) -> str | None:
    """Return the 12 digits of a principal's account."""
    found = re.search(r"(?<![0-9])[0-9]{12}(?![0-9])", principal)
    return found[0] if found else None


_ELEMENTS: Final = frozenset(
    {
        "Action",
        "Condition",
        "Effect",
        "NotAction",
        "NotPrincipal",
        "Principal",
        "Resource",
        "Sid",
    }
)


def _role(principal: str) -> str:
    match = _SESSION.fullmatch(principal)
    return f"{match[1]}:iam:{match[2]}:role/{match[3]}" if match else principal


def _texts(value: object) -> tuple[str, ...]:
    """Return a text or a list of texts; empty if anything in it is no text."""
    items = value if isinstance(value, list) else [value]
    texts = tuple(item for item in items if isinstance(item, str))
    return texts if len(texts) == len(items) else ()


def _principals(value: object) -> tuple[str, ...]:
    if value == "*":
        return ("*",)
    if not isinstance(value, dict):
        return ()
    kinds = [_texts(names) for names in value.values()]
    return tuple(name for names in kinds for name in names) if all(kinds) else ()


def _conditions(block: object) -> tuple[tuple[Condition, ...], tuple[str, ...]]:
    """Return the conditions, and what is no condition."""
    if not isinstance(block, dict):
        return (), ("Condition",)
    conditions: list[Condition] = []
    odd: list[str] = []
    for operator, keys in block.items():
        if not isinstance(keys, dict) or not keys:
            odd.append(operator[:64])
            continue
        folded = [key.lower() for key in keys]
        if len(set(folded)) != len(folded) or not "".join(keys).isascii():
            odd.append(f"{operator[:64]} names a key twice, or a foreign one")
        for key, value in keys.items():
            items = value if isinstance(value, list) else [value]
            if not items or not all(isinstance(item, (str, bool)) for item in items):
                odd.append(f"{operator[:64]} {key[:64]}")
                continue
            texts = [item if isinstance(item, str) else str(item).lower() for item in items]
            conditions.append(Condition(operator, key.lower(), tuple(texts)))
    return tuple(conditions), tuple(odd)
