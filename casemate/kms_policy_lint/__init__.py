"""Name every weakness of a key policy for attested key release (SPEC 10, 12.2).

``check_key_policy`` decides and stops at the first reason; the linter is for people: it names all,
says what each gives an attacker and how the policy is mended. It is the stricter of the two: with a
trust policy, what it finds nothing in passes the check.
"""

from __future__ import annotations

from casemate.kms_policy_lint.findings import ADVICE, Advice, Finding, Weakness
from casemate.kms_policy_lint.linter import lint_key_policy

__all__ = ["ADVICE", "Advice", "Finding", "Weakness", "lint_key_policy"]
