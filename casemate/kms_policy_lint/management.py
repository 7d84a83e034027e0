"""Who may replace a key policy, and Deny statements that deny less than they seem to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from casemate.kms_policy_lint.findings import Weakness
from casemate.kms_policy_lint.statements import is_account, same_caller

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casemate.kms_policy_lint.registers import Problem
    from casemate.kms_policy_lint.statements import Statement

PUT_POLICY: Final = "kms:PutKeyPolicy"

# Names by which pipelines go. A name proves nothing; a finding asks somebody to look.
_PIPELINE: Final = re.compile(
    r"github|gitlab|jenkins|terraform|atlantis|spacelift|pipeline|codebuild|codedeploy|buildkite"
    r"|circleci|deploy"
)
_PIPELINE_WORDS: Final = frozenset({"build", "builder", "cd", "ci", "cicd", "oidc", "runner"})


def mutable_problems(statement: Statement, decrypters: Sequence[str]) -> Iterator[Problem]:
    """Yield which principals of an Allow that reaches PutKeyPolicy should not have it."""
    for principal in statement.principals:
        if any(same_caller(principal, other) for other in decrypters):
            yield Weakness.MUTABLE_BY_DECRYPTER, principal[:128]
        if is_account(principal):
            yield Weakness.MUTABLE_BY_ACCOUNT, principal[:128]
        if is_pipeline(principal):
            yield Weakness.MUTABLE_BY_CI, principal[:128]


def is_pipeline(principal: str) -> bool:
    """Whether a user or role is named like one of continuous integration."""
    name = principal.rpartition(":")[2]
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return bool(_PIPELINE.search(name.lower())) or any(
        word.lower() in _PIPELINE_WORDS for word in words
    )


def deny_problems(statement: Statement) -> Iterator[Problem]:
    """Yield how a Deny that means to stop the wrong enclaves lets some pass."""
    against = [item for item in statement.conditions if item.register is not None and item.negated]
    if not against:
        return
    what = ", ".join(f"{item.operator} {item.key}" for item in against)[:256]
    if len(against) > 1:
        yield Weakness.DENY_ANDS_REGISTERS, what
    others = [item for item in statement.conditions if item not in against]
    if others or any(item.quantifier == "ForAnyValue" for item in against):
        yield Weakness.DENY_SKIPS_UNATTESTED, what
