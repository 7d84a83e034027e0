"""Making keys, their policies, aliases: by the key's policy, in moto's registry."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final

from casemate_devkit.kms.access import ALIAS, alias_arn, check_lockout
from casemate_devkit.kms.errors import KmsError, unsupported
from casemate_devkit.kms.keys import AGREEMENT, ENCRYPTION, SYMMETRIC, metadata

if TYPE_CHECKING:
    from collections.abc import Callable

    from moto.kms.models import Key

    from casemate_devkit.kms.access import Call, KeyAccess
    from casemate_devkit.kms.keys import KeyStore

Answer = dict[str, Any]

_CURVES: Final = {"ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521"}
_SPECS: Final[dict[str, set[str]]] = {
    ENCRYPTION: {SYMMETRIC},
    AGREEMENT: _CURVES,
    "GENERATE_VERIFY_MAC": {"HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512"},
    "SIGN_VERIFY": _CURVES | {"ECC_SECG_P256K1", "RSA_2048", "RSA_3072", "RSA_4096"},
}
# moto would make these, too, and mean something else by them than AWS.
_ONLY: Final = {"MultiRegion": False, "Origin": "AWS_KMS"}
_KNOWN: Final = {
    "BypassPolicyLockoutSafetyCheck",
    "CustomerMasterKeySpec",
    "Description",
    "KeySpec",
    "KeyUsage",
    "Policy",
    "Tags",
}


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
        given = call.parameters
        for name, value in given.items():
            if name not in _KNOWN and (name not in _ONLY or value != _ONLY[name]):
                raise unsupported(f"The double does not make keys with this {name}.")
        spec = given.get("KeySpec") or given.get("CustomerMasterKeySpec") or SYMMETRIC
        usage = given.get("KeyUsage", ENCRYPTION)
        if spec not in _SPECS[usage]:
            raise unsupported(f"The double makes no {spec} keys for {usage}.")
        policy = given.get("Policy")
        if policy is not None:
            check_lockout(call, policy)
        backend = self._keys.backend(call.principal.account, call.region)
        with self._keys.changing():
            key = backend.create_key(
                policy, usage, spec, given.get("Description", ""), given.get("Tags")
            )
        call.keys.append(key.arn)
        return {"KeyMetadata": metadata(key)}

    def _describe_key(self, call: Call) -> Answer:
        return {"KeyMetadata": metadata(self._access.permitted(call))}

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
        name = self._named(call)
        key = self._access.permitted(call, name="TargetKeyId")
        _own(call, key)
        with self._keys.changing():
            if self._keys.aliased(key.account_id, key.region, name) is not None:
                text = f"An alias with the name {alias_arn(call, name)} exists."
                raise KmsError("AlreadyExistsException", text)
            self._keys.home(key).create_alias(key.id, name)
        return {}

    def _update(self, call: Call) -> Answer:
        name = self._named(call)
        before = self._behind(call, name)
        self._access.authorise(call, before, "kms:UpdateAlias", {})
        key = self._access.permitted(call, name="TargetKeyId")
        _own(call, key)
        with self._keys.changing():
            if self._behind(call, name) is not before:
                raise KmsError("ConflictException", "The alias was moved meanwhile.")
            self._keys.home(key).update_alias(key.id, name)
        return {}

    def _delete(self, call: Call) -> Answer:
        name = self._named(call)
        key = self._behind(call, name)
        self._access.authorise(call, key, "kms:DeleteAlias", {})
        with self._keys.changing():
            key.aliases.pop(name, None)
        return {}

    def _list(self, call: Call) -> Answer:
        wanted = None
        if "KeyId" in call.parameters:
            wanted = self._access.permitted(call).id
        shown = [
            {"AliasArn": alias.alias_arn, "AliasName": name, "TargetKeyId": key.id}
            for key in self._keys.listed(call.principal.account, call.region)
            for name, alias in key.aliases.items()
            if wanted in {None, key.id}
        ]
        return {
            "Aliases": sorted(shown, key=operator.itemgetter("AliasName")),
            "Truncated": False,
        }

    @staticmethod
    def _named(call: Call) -> str:
        name = call.parameters["AliasName"]
        if ALIAS.fullmatch(name) is None:
            raise KmsError("InvalidAliasNameException", "An alias is alias/ and a name.")
        if name.startswith("alias/aws/"):
            raise KmsError("NotAuthorizedException", "Aliases of AWS are reserved.")
        return str(name)

    def _behind(self, call: Call, name: str) -> Key:
        key = self._keys.aliased(call.principal.account, call.region, name)
        if key is None:
            raise KmsError("NotFoundException", f"Alias {alias_arn(call, name)} is not found.")
        return key


def _own(call: Call, key: Key) -> None:
    if key.account_id != call.principal.account:
        raise KmsError("NotFoundException", "An alias and its key are of one account and region.")
