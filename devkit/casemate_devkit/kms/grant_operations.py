"""Making, listing and ending grants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate_devkit.kms.errors import KmsError, invalid
from casemate_devkit.kms.grants import Grant, unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moto.kms.models import Key

    from casemate_devkit.kms.access import Call, KeyAccess
    from casemate_devkit.kms.keys import KeyStore

Answer = dict[str, Any]


class Grants:
    """Grants; they hold at once, where AWS takes up to five minutes without the grant's token."""

    def __init__(self, keys: KeyStore, access: KeyAccess) -> None:
        self._keys = keys
        self._access = access
        self.operations: dict[str, Callable[[Call], Answer]] = {
            "CreateGrant": self._create,
            "ListGrants": self._list,
            "RetireGrant": self._retire,
            "RevokeGrant": self._revoke,
        }

    def _create(self, call: Call) -> Answer:
        given = call.parameters
        key = self._access.permitted(call, more=_grant_conditions(given))
        wrong = unfit(given["Operations"], key.key_usage)
        if wrong:
            raise invalid(f"A grant on a key for {key.key_usage} has no {', '.join(wrong)}.")
        constraints = given.get("Constraints", {})
        if "SourceArn" in constraints or len(constraints) > 1:
            raise invalid("Constraints: one of EncryptionContextEquals and -Subset.")
        record = {
            "grantee": given["GranteePrincipal"],
            "operations": given["Operations"],
            "issuer": f"arn:{call.principal.partition}:iam::{call.principal.account}:root",
            "retiring": given.get("RetiringPrincipal", ""),
            "constraints": constraints,
            "name": given.get("Name", ""),
        }
        grant = Grant(key.arn, record)
        self._check_passed_on(call, key, grant)
        with self._keys.changing():
            key.grants[grant.id] = grant
        return {"GrantId": grant.id, "GrantToken": grant.token}

    def _check_passed_on(self, call: Call, key: Key, grant: Grant) -> None:
        """A grantee passes on no more than it has: fewer operations, the same constraints."""
        if not call.reason.text.startswith("grant "):
            return
        for own in self._keys.grants_of(key):
            narrower = set(grant.operations) <= set(own.operations)
            same = own.constraints == grant.constraints
            if own.permits(call.principal, "CreateGrant", {}) and narrower and same:
                return
        raise KmsError("AccessDeniedException", "A grant passes on no more than it grants.")

    def _list(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        grantee = call.parameters.get("GranteePrincipal")
        wanted = call.parameters.get("GrantId")
        grants = [
            grant.to_json()
            for grant in self._keys.grants_of(key)
            if grantee in {None, grant.grantee_principal} and wanted in {None, grant.id}
        ]
        return {"Grants": grants, "Truncated": False}

    def _revoke(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        name = call.parameters["GrantId"]
        if name not in key.grants:
            raise KmsError("NotFoundException", "There is no such grant on this key.")
        return self._remove(key, name)

    def _retire(self, call: Call) -> Answer:
        token, name = call.parameters.get("GrantToken"), call.parameters.get("GrantId")
        keys = self._keys.all() if token is not None else []
        if token is None and name is not None and "KeyId" in call.parameters:
            keys = [self._access.find(call, call.parameters["KeyId"], "kms:RetireGrant")]
        for key in keys:
            for grant in self._keys.grants_of(key):
                if token == grant.token if token is not None else name == grant.id:
                    return self._retired(call, key, grant)
        raise KmsError("NotFoundException", "There is no such grant.")

    def _retired(self, call: Call, key: Key, grant: Grant) -> Answer:
        if not grant.retirable_by(call.principal):
            text = f"User: {call.principal.arn} is not authorized to perform: kms:RetireGrant"
            raise KmsError("AccessDeniedException", text)
        return self._remove(key, grant.id)

    def _remove(self, key: Key, grant_id: str) -> Answer:
        with self._keys.changing():
            key.grants.pop(grant_id, None)
        return {}


def _grant_conditions(given: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the condition keys of CreateGrant; no AWS service calls the double."""
    conditions = {
        "kms:GrantIsForAWSResource": ["false"],
        "kms:GrantOperations": list(given["Operations"]),
        "kms:GranteePrincipal": [given["GranteePrincipal"]],
    }
    if "RetiringPrincipal" in given:
        conditions["kms:RetiringPrincipal"] = [given["RetiringPrincipal"]]
    return conditions
