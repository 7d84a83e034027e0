"""Key policies: default deny, an explicit Deny wins, and nothing that is not understood allows.

``arn:...:iam::ACCOUNT:root`` in a statement means every principal of the account. AWS delegates to
IAM there; the double has no IAM and takes the reading that a user must fear.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casemate_devkit.kms.conditions import Failure, Outcome, RequestContext, evaluate, like
from casemate_devkit.kms.errors import KmsError, Reason, RegisterDifference
from casemate_devkit.kms.principals import is_named

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate_devkit.kms.principals import Principal

POLICY_MAX = 32 * 1024  # KMS API limit
_ELEMENTS = {
    "Action",
    "Condition",
    "Effect",
    "NotAction",
    "NotPrincipal",
    "Principal",
    "Resource",
    "Sid",
}
_TOP = {"Id", "Statement", "Version"}
_VERSIONS = {"2008-10-17", "2012-10-17"}
_FOREIGN_PRINCIPALS = {"CanonicalUser", "Federated", "Service"}  # none of them calls the double


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """One action of one principal on one key; ``action`` as ``kms:Decrypt``."""

    principal: Principal
    action: str
    resource: str
    context: RequestContext


@dataclass(frozen=True, slots=True)
class Decision:
    """The judgement of a policy; ``explicit`` is true if a Deny statement decided."""

    allowed: bool
    explicit: bool
    reason: Reason


@dataclass(frozen=True, slots=True)
class _Match:
    name: str
    effect: object
    names_request: bool | None
    outcome: Outcome
    unknown: tuple[str, ...]

    @property
    def applies(self) -> bool | None:
        verdicts = (self.names_request, self.outcome.satisfied, None if self.unknown else True)
        if False in verdicts:
            return False
        return None if None in verdicts else True


def parse_policy(text: str) -> dict[str, Any]:
    """Return the policy's JSON object; raises MalformedPolicyDocumentException.

    Structure only: what a statement says is judged for each request.
    """
    try:
        policy = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise _malformed("it is not JSON, or repeats a key") from None
    if not isinstance(policy, dict) or len(text) > POLICY_MAX:
        raise _malformed("it is not an object of at most 32 KiB")
    statements = _statements(policy)
    if not statements or not all(isinstance(item, dict) for item in statements):
        raise _malformed("it has no statements")
    for item in statements:
        actions = {"Action", "NotAction"} & item.keys()
        if str(item.get("Effect")) not in {"Allow", "Deny"} or len(actions) != 1:
            raise _malformed("a statement lacks Effect or Action")
        if "Resource" not in item or not {"Principal", "NotPrincipal"} & item.keys():
            raise _malformed("a statement lacks Principal or Resource")
    return policy


def decide(policy: dict[str, Any], request: AccessRequest) -> Decision:
    """Judge ``request``; the reason names the statement that decided or came nearest."""
    foreign = sorted(policy.keys() - _TOP)
    if foreign or str(policy.get("Version", "2008-10-17")) not in _VERSIONS:
        what = f"the policy has an unknown element or version: {', '.join(foreign) or 'Version'}"
        return Decision(allowed=False, explicit=False, reason=Reason("policy", what))
    matches = [_match(index, item, request) for index, item in enumerate(_statements(policy))]
    denying = [item for item in matches if item.effect == "Deny" and item.applies is not False]
    allowing = [item for item in matches if item.effect == "Allow" and item.applies is True]
    nearest = _nearest(matches)
    if denying:
        reason = _denied_by(denying[0], None if allowing else nearest)
        return Decision(allowed=False, explicit=True, reason=reason)
    if allowing:
        text = f"statement {allowing[0].name} allows it"
        return Decision(True, False, Reason("allowed", text, allowing[0].name))
    return Decision(allowed=False, explicit=False, reason=_not_allowed(nearest, request))


def not_understood(policy: dict[str, Any], request: AccessRequest) -> list[str]:
    """Return what the double does not understand in statements that name ``request``."""
    matches = [_match(index, item, request) for index, item in enumerate(_statements(policy))]
    return [
        f"statement {item.name}: {what}"
        for item in matches
        if item.names_request is not False
        for what in (*item.unknown, *item.outcome.unknown)
    ]


def _malformed(why: str) -> KmsError:
    return KmsError("MalformedPolicyDocumentException", f"The policy is refused: {why}.")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        msg = "duplicate key"
        raise ValueError(msg)
    return result


def _statements(policy: dict[str, Any]) -> list[Any]:
    statements = policy.get("Statement")
    return statements if isinstance(statements, list) else [statements] if statements else []


def _match(index: int, item: dict[str, Any], request: AccessRequest) -> _Match:
    """Compare one statement with the request; None stands for what is not understood."""
    name = f'"{item["Sid"]}"' if isinstance(item.get("Sid"), str) else f"number {index + 1}"
    parts = {
        "Principal": _caller(item, request.principal),
        "Action": _action(item, request.action),
        "Resource": _listed(item.get("Resource"), request.resource),
    }
    named = False if False in parts.values() else None if None in parts.values() else True
    unknown = [part for part, verdict in parts.items() if verdict is None]
    unknown += sorted(item.keys() - _ELEMENTS)
    outcome = evaluate(item.get("Condition", {}), request.context)
    return _Match(name, item.get("Effect"), named, outcome, tuple(unknown))


def _texts(value: object) -> list[str] | None:
    items = value if isinstance(value, list) else [value]
    texts = [item for item in items if isinstance(item, str)]
    return texts if items and len(texts) == len(items) else None


def _listed(patterns: object, value: str) -> bool | None:
    texts = _texts(patterns)
    return None if texts is None else any(like(value, text) for text in texts)


def _action(item: dict[str, Any], action: str) -> bool | None:
    if ("Action" in item) == ("NotAction" in item):
        return None
    texts = _texts(item.get("Action", item.get("NotAction")))
    if texts is None:
        return None
    named = any(like(action.lower(), text.lower()) for text in texts)
    return named == ("Action" in item)


def _caller(item: dict[str, Any], caller: Principal) -> bool | None:
    """Whether the statement means ``caller``; NotPrincipal means everybody it does not name."""
    if ("Principal" in item) == ("NotPrincipal" in item):
        return None
    if "Principal" in item:
        return _principal(item["Principal"], caller)
    named = _principal(item["NotPrincipal"], caller)
    return None if named is None else not named


def _principal(value: object, caller: Principal) -> bool | None:
    if value == "*":
        return True
    if not isinstance(value, dict) or value.keys() - _FOREIGN_PRINCIPALS - {"AWS"}:
        return None
    texts = _texts(value["AWS"]) if "AWS" in value else []
    return None if texts is None else any(text == "*" or is_named(text, caller) for text in texts)


def _nearest(matches: Iterable[_Match]) -> _Match | None:
    candidates = [
        item
        for item in matches
        if item.effect == "Allow" and item.names_request and item.applies is not True
    ]
    return min(candidates, key=_distance, default=None)


def _distance(match: _Match) -> int:
    return len(match.outcome.failures) + len(match.outcome.unknown) + len(match.unknown)


def _not_allowed(nearest: _Match | None, request: AccessRequest) -> Reason:
    if nearest is None:
        text = f"no Allow statement names {request.action} for {request.principal.arn}"
        return Reason("policy", text)
    registers = _registers(nearest.outcome.failures)
    text = f"statement {nearest.name} comes nearest; {_explain(nearest, registers)}"
    return Reason("policy", text, nearest.name, registers)


def _denied_by(deny: _Match, nearest: _Match | None) -> Reason:
    source = nearest.outcome.failures if nearest else deny.outcome.holding
    registers = _registers(source)
    text = f"statement {deny.name} denies it"
    unknown = (*deny.unknown, *deny.outcome.unknown)
    if unknown:
        text += f"; not understood: {', '.join(unknown)}"
    if registers:
        text += f"; {'; '.join(map(str, registers))}"
    return Reason("policy", text, deny.name, registers)


def _registers(entries: Iterable[Failure]) -> tuple[RegisterDifference, ...]:
    found = {
        item.register: RegisterDifference(
            item.register, item.policy, item.request[0] if item.request else None
        )
        for item in entries
        if item.register is not None
    }
    return tuple(found[index] for index in sorted(found))


def _explain(match: _Match, registers: tuple[RegisterDifference, ...]) -> str:
    parts = [str(item) for item in registers]
    parts += [
        f"{item.operator} {item.key} does not hold"
        for item in match.outcome.failures
        if item.register is None
    ]
    parts += [f"not understood: {what}" for what in (*match.unknown, *match.outcome.unknown)]
    return "; ".join(parts)
