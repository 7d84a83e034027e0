"""The linter: which rules look at which statements."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from casemate import limits
from casemate.errors import PolicyError
from casemate.kms_policy_check import VERSION, check_key_policy, exact_context
from casemate.kms_policy_lint.allows import (
    DECRYPT,
    allow_problems,
    decrypt_principals,
    unknown_operators,
)
from casemate.kms_policy_lint.findings import Finding, Weakness
from casemate.kms_policy_lint.management import deny_problems
from casemate.kms_policy_lint.statements import read_statement

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from casemate.attestation.policy import Release, TrustPolicy
    from casemate.kms_policy_check import KeyPolicy, Purpose
    from casemate.kms_policy_lint.registers import Problem
    from casemate.kms_policy_lint.statements import Statement

_VERSIONS: Final = frozenset({VERSION, "2008-10-17"})
_TOP: Final = frozenset({"Id", "Statement", "Version"})


def lint_key_policy(
    policy: KeyPolicy | str,
    *,
    trust: TrustPolicy | None = None,
    purpose: Purpose | None = None,
    scope: str | None = None,
) -> list[Finding]:
    """Return every weakness, in the order of the statements.

    Without ``trust`` any four registers are fine, without ``purpose`` and ``scope`` any exact
    context. Like the check, the linter sees one text: not grants that exist, not IAM.

    Raises PolicyError(INVALID_ARGUMENT) if just one of purpose and scope is given, or for a scope
    that no key policy can state.
    """
    expected = None
    if purpose is not None or scope is not None:
        expected = exact_context(purpose or "", scope or "")
    statements, findings = _read(policy)
    releases = trust.accepted if trust else None
    decrypters = decrypt_principals(statements)
    for statement in statements:
        problems = dict.fromkeys(_problems(statement, releases, expected, decrypters))
        findings += [_finding(statement, *problem) for problem in problems]
    if not findings and trust is not None and purpose is not None and scope is not None:
        findings += _refused(policy, trust, purpose, scope)
    return findings


def _finding(statement: Statement, weakness: Weakness, detail: str) -> Finding:
    return Finding(weakness, statement.number, statement.sid, detail)


def _refused(
    policy: KeyPolicy | str, trust: TrustPolicy, purpose: Purpose, scope: str
) -> list[Finding]:
    try:
        check_key_policy(policy, trust, purpose=purpose, scope=scope)
    except PolicyError as error:
        return [Finding(Weakness.TOO_WIDE, None, None, error.detail)]
    return []


def _read(policy: KeyPolicy | str) -> tuple[list[Statement], list[Finding]]:
    """Return the statements, and findings about the policy as a whole."""
    try:
        parsed = _parse(policy) if isinstance(policy, str) else policy
    except (ValueError, RecursionError):
        return [], [_whole(Weakness.MALFORMED_POLICY, "not JSON, too large, or a key twice")]
    if not isinstance(parsed, dict):
        return [], [_whole(Weakness.MALFORMED_POLICY, "not a JSON object")]
    listed = parsed.get("Statement")
    items = listed if isinstance(listed, list) else [listed]
    if not items or not all(isinstance(item, dict) for item in items):
        return [], [_whole(Weakness.MALFORMED_POLICY, "no statements")]
    findings = [
        _whole(Weakness.UNKNOWN_ELEMENT, name[:64]) for name in sorted(parsed.keys() - _TOP)
    ]
    if str(parsed.get("Version", "2008-10-17")) not in _VERSIONS:
        findings.append(_whole(Weakness.UNKNOWN_ELEMENT, "a Version that IAM does not know"))
    return [read_statement(number, item) for number, item in enumerate(items, 1)], findings


def _parse(text: str) -> Any:  # noqa: ANN401 - JSON
    if len(text) > limits.KEY_POLICY_MAX:
        raise ValueError("larger than a key policy can be")
    return json.loads(text, object_pairs_hook=_no_duplicates)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _whole(weakness: Weakness, detail: str) -> Finding:
    return Finding(weakness, None, None, detail)


def _problems(
    statement: Statement,
    releases: Sequence[Release] | None,
    expected: Mapping[str, str] | None,
    decrypters: Sequence[str],
) -> Iterator[Problem]:
    yield from ((Weakness.UNKNOWN_ELEMENT, name) for name in statement.unknown)
    yield from ((Weakness.UNKNOWN_OPERATOR, name) for name in statement.odd_conditions)
    if statement.not_principal:
        yield Weakness.NOT_PRINCIPAL, ", ".join(statement.principals)[:256]
    if statement.effect == "Deny":
        yield from unknown_operators(statement)
        if statement.reaches(DECRYPT):
            yield from deny_problems(statement)
        return
    yield from allow_problems(statement, releases, expected, decrypters)
