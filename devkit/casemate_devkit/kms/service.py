"""The operations of the double: authorise, act through moto, seal to the recipient."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from casemate_devkit.kms.conditions import RequestContext
from casemate_devkit.kms.errors import KmsError, Reason, invalid, unsupported
from casemate_devkit.kms.keys import KeyStore, metadata
from casemate_devkit.kms.policy import AccessRequest, decide, not_understood, parse_policy
from casemate_devkit.kms.recipient import Recipient, verify_recipient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moto.kms.models import Key

    from casemate_devkit.kms.principals import Principal

_KEY_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_KEY_ARN = re.compile(r"arn:(aws(?:-cn|-us-gov)?):kms:([a-z0-9-]+):([0-9]{12}):key/(.+)", re.ASCII)
_ALGORITHM: Final = "SYMMETRIC_DEFAULT"
_DATA_KEY_BYTES = {"AES_128": 16, "AES_256": 32}
_CREATE_KEY: Final[dict[str, set[object]]] = {
    "CustomerMasterKeySpec": {_ALGORITHM},
    "KeySpec": {_ALGORITHM},
    "KeyUsage": {"ENCRYPT_DECRYPT"},
    "MultiRegion": {False},
    "Origin": {"AWS_KMS"},
}
_CREATE_KEY_FREE = {"BypassPolicyLockoutSafetyCheck", "Description", "Policy", "Tags"}


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


class KmsService:
    """All operations over one key store. ``clock`` returns milliseconds since 1970."""

    def __init__(self, roots: frozenset[bytes], clock: Callable[[], int]) -> None:
        self._roots = roots
        self._clock = clock
        self._keys = KeyStore()
        self._operations: dict[str, Callable[[Call], dict[str, Any]]] = {
            "CreateKey": self._create_key,
            "Decrypt": self._decrypt,
            "DescribeKey": self._describe_key,
            "Encrypt": self._encrypt,
            "GenerateDataKey": self._generate_data_key,
            "GenerateDataKeyWithoutPlaintext": self._generate_data_key,
            "GenerateRandom": self._generate_random,
            "GetKeyPolicy": self._get_key_policy,
            "ListKeys": self._list_keys,
            "PutKeyPolicy": self._put_key_policy,
            "ReEncrypt": self._re_encrypt,
        }

    def answer(self, call: Call) -> dict[str, Any]:
        """Return the answer's members; raises KmsError.

        A Recipient is verified before anything else: a bad one is an error of its own and never
        falls back to an answer in plaintext.
        """
        operation = self._operations.get(call.operation)
        if operation is None:
            text = f"the double does not implement {call.operation}"
            raise KmsError("AccessDeniedException", text, Reason("unsupported", text))
        for name in ("DryRun", "GrantTokens"):
            if call.parameters.get(name):
                raise unsupported(f"The double does not support {name}.")
        for name in ("EncryptionAlgorithm", "SourceEncryptionAlgorithm"):
            if call.parameters.get(name, _ALGORITHM) != _ALGORITHM:
                raise invalid(f"{name} does not fit a symmetric key.")
        if "Recipient" in call.parameters:
            recipient = call.parameters["Recipient"]
            call.recipient = verify_recipient(recipient, self._roots, self._clock())
        return operation(call)

    # Management

    def _create_key(self, call: Call) -> dict[str, Any]:
        for name, value in call.parameters.items():
            if name not in _CREATE_KEY_FREE and value not in _CREATE_KEY.get(name, ()):
                raise unsupported(f"The double makes symmetric single-Region keys only: {name}.")
        policy = call.parameters.get("Policy")
        if policy is not None:
            self._check_lockout(call, policy)
        description = call.parameters.get("Description", "")
        key = self._keys.create(call.principal.account, call.region, policy, description)
        call.keys.append(key.arn)
        return {"KeyMetadata": metadata(key)}

    def _describe_key(self, call: Call) -> dict[str, Any]:
        return {"KeyMetadata": metadata(self._permitted(call, "kms:DescribeKey"))}

    def _get_key_policy(self, call: Call) -> dict[str, Any]:
        self._check_policy_name(call)
        key = self._permitted(call, "kms:GetKeyPolicy")
        return {"Policy": key.policy, "PolicyName": "default"}

    def _put_key_policy(self, call: Call) -> dict[str, Any]:
        self._check_policy_name(call)
        key = self._permitted(call, "kms:PutKeyPolicy")
        self._check_lockout(call, call.parameters["Policy"])
        self._keys.put_policy(key, call.parameters["Policy"])
        return {}

    def _list_keys(self, call: Call) -> dict[str, Any]:
        keys = self._keys.listed(call.principal.account, call.region)
        return {
            "Keys": [{"KeyArn": key.arn, "KeyId": key.id} for key in keys],
            "Truncated": False,
        }

    # Cryptography

    def _encrypt(self, call: Call) -> dict[str, Any]:
        key = self._permitted(call, "kms:Encrypt")
        plaintext = call.parameters["Plaintext"]
        blob = self._keys.encrypt(key, plaintext, call.context())
        return {"CiphertextBlob": blob, "KeyId": key.arn, "EncryptionAlgorithm": _ALGORITHM}

    def _decrypt(self, call: Call) -> dict[str, Any]:
        key = self._source_key(call, "KeyId", "kms:Decrypt", call.context())
        plaintext = self._keys.decrypt(key, call.parameters["CiphertextBlob"], call.context())
        answer = {"KeyId": key.arn, "EncryptionAlgorithm": _ALGORITHM}
        return answer | self._released(call, plaintext)

    def _generate_data_key(self, call: Call) -> dict[str, Any]:
        key = self._permitted(call, f"kms:{call.operation}")
        plaintext = os.urandom(_data_key_bytes(call.parameters))
        blob = self._keys.encrypt(key, plaintext, call.context())
        answer = {"CiphertextBlob": blob, "KeyId": key.arn}
        if call.operation == "GenerateDataKeyWithoutPlaintext":
            return answer
        return answer | self._released(call, plaintext)

    def _generate_random(self, call: Call) -> dict[str, Any]:
        return self._released(call, os.urandom(call.parameters.get("NumberOfBytes", 32)))

    def _re_encrypt(self, call: Call) -> dict[str, Any]:
        before = call.context("SourceEncryptionContext")
        after = call.context("DestinationEncryptionContext")
        source = self._source_key(call, "SourceKeyId", "kms:ReEncryptFrom", before)
        target = self._key(call, call.parameters["DestinationKeyId"], "kms:ReEncryptTo")
        self._authorise(call, target, "kms:ReEncryptTo", after)
        plaintext = self._keys.decrypt(source, call.parameters["CiphertextBlob"], before)
        return {
            "CiphertextBlob": self._keys.encrypt(target, plaintext, after),
            "SourceKeyId": source.arn,
            "KeyId": target.arn,
            "SourceEncryptionAlgorithm": _ALGORITHM,
            "DestinationEncryptionAlgorithm": _ALGORITHM,
        }

    @staticmethod
    def _released(call: Call, plaintext: bytes) -> dict[str, Any]:
        """Return the plaintext, or its envelope if a recipient was stated: never both."""
        if call.recipient is not None:
            return {"CiphertextForRecipient": call.recipient.seal(plaintext)}
        return {"Plaintext": plaintext}

    # Keys and their policies

    def _permitted(self, call: Call, action: str) -> Key:
        key = self._key(call, call.parameters["KeyId"], action)
        self._authorise(call, key, action, call.context())
        return key

    def _source_key(self, call: Call, name: str, action: str, context: Mapping[str, str]) -> Key:
        """Return the key that opens CiphertextBlob; a stated key must be the one."""
        owner = self._keys.owner(call.region, call.parameters["CiphertextBlob"])
        stated = call.parameters.get(name)
        key = self._key(call, stated, action) if stated is not None else owner
        if key is None:
            text = "The ciphertext refers to a key that does not exist or that you may not use."
            raise KmsError("AccessDeniedException", text)
        self._authorise(call, key, action, context)
        if owner is None:
            raise KmsError("InvalidCiphertextException", "")
        if owner.arn != key.arn:
            text = (
                "The key ID in the request does not identify a CMK that can perform this operation."
            )
            raise KmsError("IncorrectKeyException", text)
        return key

    def _key(self, call: Call, stated: str, action: str) -> Key:
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

    def _authorise(self, call: Call, key: Key, action: str, context: Mapping[str, str]) -> None:
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

    def _check_lockout(self, call: Call, text: str) -> None:
        """Refuse a malformed policy and, as AWS does, one that locks its author out."""
        policy = parse_policy(text)
        if call.parameters.get("BypassPolicyLockoutSafetyCheck"):
            return
        request = AccessRequest(
            call.principal, "kms:PutKeyPolicy", "*", RequestContext(call.principal)
        )
        if not decide(policy, request).allowed:
            text = "The new key policy will not allow you to update the key policy in the future."
            raise KmsError("MalformedPolicyDocumentException", text)

    @staticmethod
    def _check_policy_name(call: Call) -> None:
        if call.parameters.get("PolicyName", "default") != "default":
            raise KmsError("NotFoundException", "No such policy exists")


def _data_key_bytes(parameters: Mapping[str, Any]) -> int:
    if ("KeySpec" in parameters) == ("NumberOfBytes" in parameters):
        raise invalid("Please specify either number of bytes or key spec.")
    size = parameters.get("NumberOfBytes")
    return int(_DATA_KEY_BYTES[parameters["KeySpec"]] if size is None else size)


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
