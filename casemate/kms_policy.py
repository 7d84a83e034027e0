"""Key policies for attested key release: write a narrow one, refuse a wide one (SPEC 10).

A key serves one purpose and one scope (SPEC 5.3, 8.2). ``attested_key_policy`` writes the policy of
such a key; ``check_key_policy`` judges the policy of a key before a client seals data under it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.kms_policy_check import (
    CONTEXT,
    CONTEXT_KEYS,
    PCR,
    REGISTERS,
    VERSION,
    KeyPolicy,
    Purpose,
    check_key_policy,
    exact_context,
    invalid,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casemate.attestation.policy import Release


__all__ = ["KeyPolicy", "Purpose", "attested_key_policy", "check_key_policy"]

_PRINCIPAL: Final = re.compile(
    r"arn:aws(?:-cn|-us-gov)?:iam::[0-9]{12}:(?:root|user/[\w+=,.@/-]+|role/[\w+=,.@/-]+)",
    re.ASCII,
)
# What management needs. None of it reads a key, uses it, or passes the right to use it on; but
# PutKeyPolicy can replace this very policy.
_MANAGEMENT: Final = (
    "kms:CancelKeyDeletion",
    "kms:DescribeKey",
    "kms:DisableKey",
    "kms:DisableKeyRotation",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:ListResourceTags",
    "kms:PutKeyPolicy",
    "kms:RevokeGrant",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateKeyDescription",
)
_NEVER: Final = ("kms:CreateGrant", "kms:ReEncrypt*", "kms:ReplicateKey")


def attested_key_policy(
    *,
    account_admin: str,
    decrypt_principal: str,
    releases: Sequence[Release],
    purpose: Purpose,
    scope: str,
    encrypt_principals: Sequence[str],
) -> KeyPolicy:
    """Return the least-privilege policy of a key for one purpose and scope.

    Args:
        account_admin: manages the key and may replace this policy, but not use the key. An account
            root stands for whomever that account's IAM lets manage keys: a role is narrower.
        decrypt_principal: whose credentials the enclave uses; these alone release nothing.
        releases: what may decrypt; one statement each, so that registers of two never mix.
        purpose: ``data`` for sessions (SPEC 5.3), ``model`` for sealed models (SPEC 8.2).
        scope: the audience, or ``<publisher, hex>/<name>``.
        encrypt_principals: may make data keys in this context and read the policy.

    Principals are ARNs of users, roles or account roots. Raises PolicyError(INVALID_ARGUMENT).
    """
    context = exact_context(purpose, scope)
    for principal in (account_admin, decrypt_principal, *encrypt_principals):
        if _PRINCIPAL.fullmatch(principal) is None:
            invalid(f"not the ARN of a user, a role or an account: {principal[:128]!r}")
    if not encrypt_principals or not 1 <= len(releases) <= limits.POLICY_RELEASES_MAX:
        invalid("no principal that encrypts, or not 1 to 16 releases")
    statements = [
        _allow("Manage", account_admin, list(_MANAGEMENT)),
        _allow("ReadPolicy", list(encrypt_principals), ["kms:DescribeKey", "kms:GetKeyPolicy"]),
        _allow("Seal", list(encrypt_principals), ["kms:Encrypt", "kms:GenerateDataKey"], context),
        *(
            _allow(_sid(number, release), decrypt_principal, "kms:Decrypt", context, release)
            for number, release in enumerate(releases, 1)
        ),
        *(_deny_other_values(index, releases) for index in REGISTERS),
        _statement("DenyWhatCannotBeAttested", "Deny", "*", list(_NEVER)),
    ]
    policy = {"Version": VERSION, "Statement": statements}
    if len(json.dumps(policy, separators=(",", ":"))) > limits.KEY_POLICY_MAX:
        invalid("too many releases for one key policy of 32 KiB")
    return policy


def _statement(sid: str, effect: str, principal: str | list[str], action: object) -> KeyPolicy:
    who: object = "*" if principal == "*" else {"AWS": principal}
    return {"Sid": sid, "Effect": effect, "Principal": who, "Action": action, "Resource": "*"}


def _allow(
    sid: str,
    principal: str | list[str],
    action: str | list[str],
    context: Mapping[str, str] | None = None,
    release: Release | None = None,
) -> KeyPolicy:
    statement = _statement(sid, "Allow", principal, action)
    condition: dict[str, dict[str, object]] = {}
    if context is not None:
        condition["StringEquals"] = {CONTEXT + key: value for key, value in context.items()}
        # Condition keys ignore case, their values do not: this pins the names' case, too.
        condition["ForAllValues:StringEquals"] = {CONTEXT_KEYS: sorted(context)}
    if release is not None:
        registers = release.registers.items()
        condition["StringEqualsIgnoreCase"] = {f"{PCR}{i}": value.hex() for i, value in registers}
    return statement | ({"Condition": condition} if condition else {})


def _deny_other_values(index: int, releases: Sequence[Release]) -> KeyPolicy:
    """Deny Decrypt to everybody whose register is none of the releases', or is not attested.

    A negated operator holds on a missing key. This outlives a wide Allow or a grant added later.
    """
    values = sorted({release.registers[index].hex() for release in releases})
    statement = _statement(f"DenyOtherPCR{index}", "Deny", "*", "kms:Decrypt")
    condition = {"StringNotEqualsIgnoreCase": {f"{PCR}{index}": values}}
    return statement | {"Condition": condition}


def _sid(number: int, release: Release) -> str:
    return f"Decrypt{number}Release" + re.sub(r"[^A-Za-z0-9]", "", release.name)
