"""Keys and their policies, aliases, grants."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from casemate_devkit.kms.access import ALIAS, alias_arn, check_lockout
from casemate_devkit.kms.errors import KmsError, invalid, unsupported
from casemate_devkit.kms.grants import OPERATIONS, Grant
from casemate_devkit.kms.keys import (
    AGREEMENT,
    CURVES,
    ENCRYPTION,
    SYMMETRIC,
    KmsKey,
    default_policy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casemate_devkit.kms.access import Call, KeyAccess
    from casemate_devkit.kms.keys import KeyStore

Answer = dict[str, Any]

_CREATE_KEY: Final[dict[str, set[object]]] = {
    "CustomerMasterKeySpec": {SYMMETRIC, *CURVES},
    "KeySpec": {SYMMETRIC, *CURVES},
    "KeyUsage": {ENCRYPTION, AGREEMENT},
    "MultiRegion": {False},
    "Origin": {"AWS_KMS"},
}
_CREATE_KEY_FREE: Final = {"BypassPolicyLockoutSafetyCheck", "Description", "Policy", "Tags"}
_ID_BYTES: Final = 32


class Keys:
    """Making keys, reading and replacing their policies."""

    def __init__(self, keys: KeyStore, access: KeyAccess) -> None:
        self._keys = keys
        self._access = access
        self.operations: dict[str, Callable[[Call], Answer]] = {
            "CreateKey": self._create_key,
            "DescribeKey": self._describe_key,
            "GetKeyPolicy": self._get_key_policy,
            "ListKeys": self._list_keys,
            "PutKeyPolicy": self._put_key_policy,
        }

    def _create_key(self, call: Call) -> Answer:
        for name, value in call.parameters.items():
            if name not in _CREATE_KEY_FREE and value not in _CREATE_KEY.get(name, ()):
                raise unsupported(f"The double does not make keys with this {name}.")
        spec = call.parameters.get("KeySpec") or call.parameters.get("CustomerMasterKeySpec")
        spec = spec or SYMMETRIC
        usage = ENCRYPTION if spec == SYMMETRIC else AGREEMENT
        if call.parameters.get("KeyUsage", ENCRYPTION) != usage:
            raise unsupported(f"The double makes {spec} keys for {usage} only.")
        policy = call.parameters.get("Policy")
        if policy is not None:
            check_lockout(call, policy)
        tags = {item["TagKey"]: item["TagValue"] for item in call.parameters.get("Tags", [])}
        description = call.parameters.get("Description", "")
        account, partition = call.principal.account, call.principal.partition
        text = policy or default_policy(account, partition)
        key = KmsKey(account, call.region, text, spec, description, tags)
        self._keys.add(key)
        call.keys.append(key.arn)
        return {"KeyMetadata": key.metadata()}

    def _describe_key(self, call: Call) -> Answer:
        return {"KeyMetadata": self._access.permitted(call).metadata()}

    def _get_key_policy(self, call: Call) -> Answer:
        _check_policy_name(call)
        return {"Policy": self._access.permitted(call).policy, "PolicyName": "default"}

    def _put_key_policy(self, call: Call) -> Answer:
        _check_policy_name(call)
        key = self._access.permitted(call)
        check_lockout(call, call.parameters["Policy"], key.arn)
        with self._keys.changing():
            key.policy = call.parameters["Policy"]
        return {}

    def _list_keys(self, call: Call) -> Answer:
        keys = self._keys.listed(call.principal.account, call.region)
        return {
            "Keys": [{"KeyArn": key.arn, "KeyId": key.id} for key in keys],
            "Truncated": False,
        }


def _check_policy_name(call: Call) -> None:
    if call.parameters.get("PolicyName", "default") != "default":
        raise KmsError("NotFoundException", "No such policy exists")


class Aliases:
    """Aliases. AWS asks IAM about the alias and the key policy about the key; here the latter."""

    def __init__(self, keys: KeyStore, access: KeyAccess) -> None:
        self._keys = keys
        self._access = access
        self.operations: dict[str, Callable[[Call], Answer]] = {
            "CreateAlias": self._create,
            "DeleteAlias": self._delete,
            "ListAliases": self._list,
            "UpdateAlias": self._update,
        }

    def _create(self, call: Call) -> Answer:
        arn = self._named(call)
        key = self._access.permitted(call, name="TargetKeyId")
        _own(call, key)
        with self._keys.changing():
            if arn in self._keys.aliases:
                raise KmsError("AlreadyExistsException", f"An alias with the name {arn} exists.")
            self._keys.aliases[arn] = key.id
        return {}

    def _update(self, call: Call) -> Answer:
        arn = self._named(call)
        self._access.authorise(call, self._behind(call, arn), "kms:UpdateAlias", {})
        key = self._access.permitted(call, name="TargetKeyId")
        _own(call, key)
        with self._keys.changing():
            self._keys.aliases[arn] = key.id
        return {}

    def _delete(self, call: Call) -> Answer:
        arn = self._named(call)
        self._access.authorise(call, self._behind(call, arn), "kms:DeleteAlias", {})
        with self._keys.changing():
            self._keys.aliases.pop(arn, None)
        return {}

    def _list(self, call: Call) -> Answer:
        wanted = None
        if "KeyId" in call.parameters:
            wanted = self._access.permitted(call).id
        own = alias_arn(call, "alias/")
        shown = [
            {"AliasArn": arn, "AliasName": arn.rpartition(":")[2], "TargetKeyId": target}
            for arn, target in sorted(self._keys.aliases.items())
            if arn.startswith(own) and wanted in {None, target}
        ]
        return {"Aliases": shown, "Truncated": False}

    @staticmethod
    def _named(call: Call) -> str:
        name = call.parameters["AliasName"]
        if ALIAS.fullmatch(name) is None:
            raise KmsError("InvalidAliasNameException", "An alias is alias/ and a name.")
        if name.startswith("alias/aws/"):
            raise KmsError("NotAuthorizedException", "Aliases of AWS are reserved.")
        return alias_arn(call, name)

    def _behind(self, call: Call, arn: str) -> KmsKey:
        target = self._keys.aliases.get(arn, "")
        key = self._keys.find(call.principal.account, call.region, target)
        if key is None:
            raise KmsError("NotFoundException", f"Alias {arn} is not found.")
        return key


def _own(call: Call, key: KmsKey) -> None:
    if key.account != call.principal.account:
        raise KmsError("NotFoundException", "An alias and its key are of one account and region.")


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
        asked = set(given["Operations"])
        if asked - OPERATIONS:
            raise unsupported(f"The double grants no {', '.join(sorted(asked - OPERATIONS))}.")
        key = self._access.permitted(call, more=_grant_conditions(given))
        constraints = given.get("Constraints", {})
        if "SourceArn" in constraints or len(constraints) > 1:
            raise invalid("Constraints: one of EncryptionContextEquals and -Subset.")
        grant = Grant(
            id=secrets.token_hex(_ID_BYTES),
            token=secrets.token_urlsafe(_ID_BYTES * 2),
            key_id=key.id,
            grantee=given["GranteePrincipal"],
            retiring=given.get("RetiringPrincipal"),
            operations=list(given["Operations"]),
            equals=constraints.get("EncryptionContextEquals"),
            subset=constraints.get("EncryptionContextSubset"),
            name=given.get("Name"),
            issuer=f"arn:{call.principal.partition}:iam::{call.principal.account}:root",
            created=time.time(),
        )
        self._check_passed_on(call, key, grant)
        with self._keys.changing():
            self._keys.grants[grant.id] = grant
        return {"GrantId": grant.id, "GrantToken": grant.token}

    def _check_passed_on(self, call: Call, key: KmsKey, grant: Grant) -> None:
        """A grantee passes on no more than it has: fewer operations, the same constraints."""
        if not call.reason.text.startswith("grant "):
            return
        for own in self._keys.grants_of(key):
            narrower = set(grant.operations) <= set(own.operations)
            same = (own.equals, own.subset) == (grant.equals, grant.subset)
            if own.permits(call.principal, "CreateGrant", {}) and narrower and same:
                return
        raise KmsError("AccessDeniedException", "A grant passes on no more than it grants.")

    def _list(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        grantee = call.parameters.get("GranteePrincipal")
        wanted = call.parameters.get("GrantId")
        grants = [
            grant.shown(key.arn)
            for grant in self._keys.grants_of(key)
            if grantee in {None, grant.grantee} and wanted in {None, grant.id}
        ]
        return {"Grants": grants, "Truncated": False}

    def _revoke(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        grant = self._keys.grants.get(call.parameters["GrantId"])
        if grant is None or grant.key_id != key.id:
            raise KmsError("NotFoundException", "There is no such grant on this key.")
        return self._remove(grant)

    def _retire(self, call: Call) -> Answer:
        token, name = call.parameters.get("GrantToken"), call.parameters.get("GrantId")
        found = [item for item in self._keys.grants.values() if token == item.token]
        if token is None and name is not None and "KeyId" in call.parameters:
            key = self._access.find(call, call.parameters["KeyId"], "kms:RetireGrant")
            found = [item for item in self._keys.grants_of(key) if item.id == name]
        if not found:
            raise KmsError("NotFoundException", "There is no such grant.")
        if not found[0].retirable_by(call.principal):
            text = f"User: {call.principal.arn} is not authorized to perform: kms:RetireGrant"
            raise KmsError("AccessDeniedException", text)
        return self._remove(found[0])

    def _remove(self, grant: Grant) -> Answer:
        with self._keys.changing():
            self._keys.grants.pop(grant.id, None)
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
