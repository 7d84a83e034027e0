"""Grants: the other way to be allowed, and one without any attestation condition.

moto keeps them with its keys and judges nothing by them; that is done here. As on AWS an explicit
Deny in the key policy still wins, and constraints bind encryption contexts.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from moto.kms import models

from casemate_devkit.kms.principals import is_named

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
# What can be granted on a key of each usage, beside the last.
_FITTING: Final[dict[str, set[str] | frozenset[str]]] = {
    "ENCRYPT_DECRYPT": _WITH_CONTEXT,
    "GENERATE_VERIFY_MAC": {"GenerateMac", "VerifyMac"},
    "KEY_AGREEMENT": {"DeriveSharedSecret", "GetPublicKey"},
    "SIGN_VERIFY": {"GetPublicKey", "Sign", "Verify"},
}
_ALWAYS: Final = {"CreateGrant", "DescribeKey", "RetireGrant"}
_ID_BYTES: Final = 32


def unfit(operations: Iterable[str], usage: str) -> list[str]:
    """Return those of ``operations`` that a grant on a key of this usage cannot have."""
    return sorted(set(operations) - _FITTING[usage] - _ALWAYS)


class Grant(models.Grant):
    """One grant of moto's, with the issuer and the time that AWS shows.

    ``record`` has ``grantee``, ``operations`` and ``issuer``, and may have ``name``, ``retiring``,
    ``constraints`` and, of a grant made before, ``id``, ``token`` and ``created``.
    """

    def __init__(self, key_arn: str, record: Mapping[str, Any]) -> None:
        super().__init__(
            key_arn,
            record.get("name", ""),
            record["grantee"],
            list(record["operations"]),
            constraints=dict(record.get("constraints", {})),
            retiring_principal=record.get("retiring", ""),
        )
        # moto's ids are short, and foreseeable once somebody seeds its generator.
        self.id = str(record.get("id") or secrets.token_hex(_ID_BYTES))
        self.token = str(record.get("token") or secrets.token_urlsafe(_ID_BYTES * 2))
        self.issuer = str(record["issuer"])
        self.created = float(record.get("created") or time.time())

    def permits(self, caller: Principal, operation: str, context: Mapping[str, str]) -> bool:
        """Whether the grant lets ``caller`` do ``operation`` in this encryption context."""
        if operation not in self.operations or not is_named(self.grantee_principal, caller):
            return False
        if operation not in _WITH_CONTEXT:
            return True
        equals = self.constraints.get("EncryptionContextEquals")
        subset = self.constraints.get("EncryptionContextSubset")
        if equals is not None and dict(context) != equals:
            return False
        return subset is None or subset.items() <= context.items()

    def retirable_by(self, caller: Principal) -> bool:
        """Whether the grant itself lets ``caller`` retire it."""
        if self.retiring_principal and is_named(self.retiring_principal, caller):
            return True
        return self.permits(caller, "RetireGrant", {})

    def record(self) -> dict[str, Any]:
        """Return what makes the same grant again."""
        return {
            "id": self.id,
            "token": self.token,
            "grantee": self.grantee_principal,
            "operations": self.operations,
            "issuer": self.issuer,
            "created": self.created,
            "name": self.name,
            "retiring": self.retiring_principal,
            "constraints": self.constraints,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the grant as ListGrants shows it, members without value left out."""
        record = super().to_json() | {
            "CreationDate": self.created,
            "IssuingAccount": self.issuer,
        }
        return {name: value for name, value in record.items() if value}
