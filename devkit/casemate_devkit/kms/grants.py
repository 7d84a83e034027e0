"""Grants: the other way to be allowed, and one without any attestation condition.

As on AWS an explicit Deny in the key policy still wins, and constraints bind encryption contexts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from casemate_devkit.kms.principals import is_named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casemate_devkit.kms.principals import Principal

# Constraints speak of encryption contexts; operations without one are not bound by them.
_WITH_CONTEXT: Final = frozenset(
    {
        "Decrypt",
        "Encrypt",
        "GenerateDataKey",
        "GenerateDataKeyPair",
        "GenerateDataKeyPairWithoutPlaintext",
        "GenerateDataKeyWithoutPlaintext",
        "ReEncryptFrom",
        "ReEncryptTo",
    }
)
OPERATIONS: Final = _WITH_CONTEXT | {
    "CreateGrant",
    "DeriveSharedSecret",
    "DescribeKey",
    "GetPublicKey",
    "RetireGrant",
}


@dataclass(frozen=True, slots=True)
class Grant:
    """One grant; ``equals`` and ``subset`` are its constraints, None if it has none."""

    id: str
    token: str = field(repr=False)
    key_id: str
    grantee: str
    retiring: str | None
    operations: list[str]
    equals: dict[str, str] | None
    subset: dict[str, str] | None
    name: str | None
    issuer: str
    created: float

    def permits(self, caller: Principal, operation: str, context: Mapping[str, str]) -> bool:
        """Whether the grant lets ``caller`` do ``operation`` in this encryption context."""
        if operation not in self.operations or not is_named(self.grantee, caller):
            return False
        if operation not in _WITH_CONTEXT:
            return True
        if self.equals is not None and dict(context) != self.equals:
            return False
        return self.subset is None or self.subset.items() <= context.items()

    def retirable_by(self, caller: Principal) -> bool:
        """Whether the grant itself lets ``caller`` retire it."""
        if self.retiring is not None and is_named(self.retiring, caller):
            return True
        return self.permits(caller, "RetireGrant", {})

    def record(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    def shown(self, key_arn: str) -> dict[str, Any]:
        """Return the grant as ListGrants shows it, members without value left out."""
        constraints = {
            "EncryptionContextEquals": self.equals,
            "EncryptionContextSubset": self.subset,
        }
        record = {
            "KeyId": key_arn,
            "GrantId": self.id,
            "Name": self.name,
            "CreationDate": self.created,
            "GranteePrincipal": self.grantee,
            "RetiringPrincipal": self.retiring,
            "IssuingAccount": self.issuer,
            "Operations": self.operations,
            "Constraints": {name: item for name, item in constraints.items() if item} or None,
        }
        return {name: value for name, value in record.items() if value is not None}
