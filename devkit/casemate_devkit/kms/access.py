"""Finding the key of a request and judging the request by the key's policy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casemate_devkit.kms.conditions import RequestContext
from casemate_devkit.kms.errors import KmsError, Reason
from casemate_devkit.kms.policy import AccessRequest, decide, not_understood, parse_policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moto.kms.models import Key

    from casemate_devkit.kms.keys import KeyStore
    from casemate_devkit.kms.principals import Principal
    from casemate_devkit.kms.recipient import Recipient

_KEY_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_KEY_ARN = re.compile(r"arn:(aws(?:-cn|-us-gov)?):kms:([a-z0-9-]+):([0-9]{12}):key/(.+)", re.ASCII)


@dataclass(slots=True)
class Call:
    """One authenticated request, and what the audit trail will say about it."""

    principal: Principal
    region: str
    operation: str
    parameters: Mapping[str, Any]
    recipient: Recipient | None = None
    reason: Reason = field(default_factory=lambda: Reason("allowed", "any principal may call it"))
    keys: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def context(self, name: str = "EncryptionContext") -> Mapping[str, str]:
        """Return an encryption context parameter, empty if absent."""
        value: Mapping[str, str] = self.parameters.get(name, {})
        return value


class KeyAccess:
    """Keys, handed out only to whom their policy lets do what is asked."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    def permitted(self, call: Call, action: str) -> Key:
        """Return the key of KeyId if its policy allows ``action``; raises KmsError."""
        key = self.find(call, call.parameters["KeyId"], action)
        self.authorise(call, key, action, call.context())
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
        """Return the key with this id or ARN; aliases and foreign regions are refused."""
        match = _KEY_ARN.fullmatch(stated)
        account = call.principal.account
        if match is not None:
            partition, region, account, stated = match.groups()
            if region != call.region or partition != call.principal.partition:
                raise KmsError("NotFoundException", f"Invalid arn {region}")
        if _KEY_ID.fullmatch(stated) is None:
            raise KmsError("NotFoundException", f"Invalid keyId {stated[:128]!r}")
        key = self._keys.find(account, call.region, stated)
        if key is None and account == call.principal.account:
            raise KmsError("NotFoundException", f"Key '{stated}' does not exist")
        if key is None:
            text = f"no such key in account {account}"
            raise _denied(
                call, action, call.parameters.get("KeyId", stated), Reason("policy", text)
            )
        return key

    def authorise(self, call: Call, key: Key, action: str, context: Mapping[str, str]) -> None:
        """Judge ``call`` by the policy of ``key``; raises AccessDeniedException."""
        call.keys.append(key.arn)
        registers = call.recipient.registers if call.recipient else None
        request_context = RequestContext(call.principal, context, registers)
        request = AccessRequest(call.principal, action, key.arn, request_context)
        policy = parse_policy(key.policy)
        decision = decide(policy, request)
        call.unknown += not_understood(policy, request)
        call.reason = decision.reason
        if not decision.allowed:
            raise _denied(call, action, key.arn, decision.reason, explicit=decision.explicit)


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
