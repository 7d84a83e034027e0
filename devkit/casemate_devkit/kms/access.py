"""Finding the key of a request, and judging the request by the key's policy, grants and state."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from casemate_devkit.kms.conditions import RequestContext
from casemate_devkit.kms.errors import KmsError, Reason
from casemate_devkit.kms.lifecycle import check_state
from casemate_devkit.kms.policy import AccessRequest, decide, not_understood, parse_policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moto.kms.models import Key

    from casemate_devkit.kms.faults import Faults
    from casemate_devkit.kms.keys import KeyStore
    from casemate_devkit.kms.principals import Principal
    from casemate_devkit.kms.recipient import Recipient

_KEY_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_ARN = re.compile(r"arn:(aws(?:-cn|-us-gov)?):kms:([a-z0-9-]+):([0-9]{12}):(.+)", re.ASCII)
ALIAS = re.compile(r"alias/[A-Za-z0-9/_-]{1,250}", re.ASCII)
# Everything else wants an id or an ARN of the key itself.
_ALIAS_OPERATIONS: Final = {
    "Decrypt",
    "DeriveSharedSecret",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateMac",
    "GetPublicKey",
    "ReEncrypt",
    "Sign",
    "Verify",
    "VerifyMac",
}


@dataclass(slots=True)
class Call:
    """One authenticated request, and what the audit trail will say about it."""

    principal: Principal
    region: str
    operation: str
    parameters: Mapping[str, Any]
    faults: Faults
    recipient: Recipient | None = None
    reason: Reason = field(default_factory=lambda: Reason("allowed", "any principal may call it"))
    keys: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    alias: str | None = None

    def context(self, name: str = "EncryptionContext") -> Mapping[str, str]:
        """Return an encryption context parameter, empty if absent."""
        value: Mapping[str, str] = self.parameters.get(name, {})
        return value


class KeyAccess:
    """Keys, handed out only to whom their policy or a grant lets do what is asked."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    def permitted(
        self,
        call: Call,
        action: str | None = None,
        name: str = "KeyId",
        more: Mapping[str, Sequence[str]] | None = None,
    ) -> Key:
        """Return the key that parameter ``name`` names, if ``action`` is allowed on it.

        ``action`` is by default that of the operation; ``more`` are further condition keys.
        Raises KmsError.
        """
        action = action or f"kms:{call.operation}"
        key = self.find(call, call.parameters[name], action)
        self.authorise(call, key, action, call.context(), more)
        return key

    def source(self, call: Call, name: str, action: str, context: Mapping[str, str]) -> Key:
        """Return the key that opens CiphertextBlob; a stated key must be the one."""
        owner = self._keys.owner(call.region, call.parameters["CiphertextBlob"])
        stated = call.parameters.get(name)
        key = self.find(call, stated, action) if stated is not None else owner
        if key is None:
            text = "The ciphertext refers to a key that does not exist or that you may not use."
            raise KmsError("AccessDeniedException", text)
        self.authorise(call, key, action, context)
        if owner is None:
            raise KmsError("InvalidCiphertextException", "")
        if owner.arn != key.arn:
            text = (
                "The key ID in the request does not identify a CMK that can perform this operation."
            )
            raise KmsError("IncorrectKeyException", text)
        return key

    def find(self, call: Call, stated: str, action: str) -> Key:
        """Return the key with this id, ARN or alias; foreign regions are refused."""
        account, name = self._located(call, stated)
        if ALIAS.fullmatch(name) is not None:
            return self._target(call, account, name)
        if _KEY_ID.fullmatch(name) is None:
            raise KmsError("NotFoundException", f"Invalid keyId {name[:128]!r}")
        key = self._keys.find(account, call.region, name)
        if key is None and account == call.principal.account:
            raise KmsError("NotFoundException", f"Key '{name}' does not exist")
        if key is None:
            text = f"no such key in account {account}"
            raise _denied(call, action, stated, Reason("policy", text))
        return key

    @staticmethod
    def _located(call: Call, stated: str) -> tuple[str, str]:
        """Return account and resource: a bare key id, or a name that begins with ``alias/``."""
        match = _ARN.fullmatch(stated)
        if match is None:
            return call.principal.account, stated
        partition, region, account, resource = match.groups()
        if region != call.region or partition != call.principal.partition:
            raise KmsError("NotFoundException", f"Invalid arn {region}")
        if resource.startswith("alias/"):
            return account, resource
        kind, _, name = resource.partition("/")
        return account, name if kind == "key" else resource

    def _target(self, call: Call, account: str, name: str) -> Key:
        if call.operation not in _ALIAS_OPERATIONS:
            raise KmsError("NotFoundException", f"Invalid keyId {name!r}")
        target = self._keys.aliased(account, call.region, name)
        if target is None:
            arn = alias_arn(call, name, account)
            raise KmsError("NotFoundException", f"Alias {arn} is not found.")
        call.alias = name
        return target

    def authorise(
        self,
        call: Call,
        key: Key,
        action: str,
        context: Mapping[str, str],
        more: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Judge ``call`` by the key's policy and grants, then by the key's state.

        Raises AccessDeniedException, DisabledException or KMSInvalidStateException.
        """
        call.keys.append(key.arn)
        registers = call.recipient.registers if call.recipient else None
        further = {"kms:ResourceAliases": list(key.aliases), **(more or {})}
        if call.alias is not None:
            further["kms:RequestAlias"] = [call.alias]
        request_context = RequestContext(call.principal, context, registers, further)
        request = AccessRequest(call.principal, action, key.arn, request_context)
        policy = parse_policy(key.policy)
        decision = decide(policy, request)
        call.unknown += not_understood(policy, request)
        call.reason = decision.reason
        if not decision.allowed and not decision.explicit:
            granted = self._granted(call, key, action, context)
            call.reason = granted or decision.reason
        if call.reason.code != "allowed":
            raise _denied(call, action, key.arn, decision.reason, explicit=decision.explicit)
        check_state(key, call.operation)

    def _granted(
        self, call: Call, key: Key, action: str, context: Mapping[str, str]
    ) -> Reason | None:
        operation = action.removeprefix("kms:")
        for grant in self._keys.grants_of(key):
            if grant.permits(call.principal, operation, context):
                return Reason("allowed", f"grant {grant.id} allows it")
        return None


def alias_arn(call: Call, name: str, account: str | None = None) -> str:
    """Return the ARN of an alias, of the caller's account by default."""
    principal = call.principal
    return f"arn:{principal.partition}:kms:{call.region}:{account or principal.account}:{name}"


def check_lockout(call: Call, text: str, resource: str = "*") -> None:
    """Refuse a malformed policy and, as AWS does, one that locks its author out."""
    policy = parse_policy(text)
    if call.parameters.get("BypassPolicyLockoutSafetyCheck"):
        return
    context = RequestContext(call.principal)
    request = AccessRequest(call.principal, "kms:PutKeyPolicy", resource, context)
    if not decide(policy, request).allowed:
        message = "The new key policy will not allow you to update the key policy in the future."
        raise KmsError("MalformedPolicyDocumentException", message)


def _denied(
    call: Call, action: str, resource: str, reason: Reason, *, explicit: bool = False
) -> KmsError:
    because = (
        "with an explicit deny in a resource-based policy"
        if explicit
        else f"because no resource-based policy allows the {action} action"
    )
    text = f"User: {call.principal.arn} is not authorized to perform: {action}"
    return KmsError("AccessDeniedException", f"{text} on resource: {resource} {because}", reason)
