"""The operations of the double: authorise, act through moto, seal to the recipient."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from casemate_devkit.kms.access import Call, KeyAccess, check_lockout
from casemate_devkit.kms.errors import KmsError, Reason, invalid, unsupported
from casemate_devkit.kms.keys import KeyStore, metadata
from casemate_devkit.kms.recipient import verify_recipient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


class KmsService:
    """All operations over one key store. ``clock`` returns milliseconds since 1970."""

    def __init__(self, roots: frozenset[bytes], clock: Callable[[], int]) -> None:
        self._roots = roots
        self._clock = clock
        self._keys = KeyStore()
        self._access = KeyAccess(self._keys)
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
            check_lockout(call, policy)
        description = call.parameters.get("Description", "")
        key = self._keys.create(call.principal.account, call.region, policy, description)
        call.keys.append(key.arn)
        return {"KeyMetadata": metadata(key)}

    def _describe_key(self, call: Call) -> dict[str, Any]:
        return {"KeyMetadata": metadata(self._access.permitted(call, "kms:DescribeKey"))}

    def _get_key_policy(self, call: Call) -> dict[str, Any]:
        self._check_policy_name(call)
        key = self._access.permitted(call, "kms:GetKeyPolicy")
        return {"Policy": key.policy, "PolicyName": "default"}

    def _put_key_policy(self, call: Call) -> dict[str, Any]:
        self._check_policy_name(call)
        key = self._access.permitted(call, "kms:PutKeyPolicy")
        check_lockout(call, call.parameters["Policy"], key.arn)
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
        key = self._access.permitted(call, "kms:Encrypt")
        plaintext = call.parameters["Plaintext"]
        blob = self._keys.encrypt(key, plaintext, call.context())
        return {"CiphertextBlob": blob, "KeyId": key.arn, "EncryptionAlgorithm": _ALGORITHM}

    def _decrypt(self, call: Call) -> dict[str, Any]:
        key = self._access.source(call, "KeyId", "kms:Decrypt", call.context())
        plaintext = self._keys.decrypt(key, call.parameters["CiphertextBlob"], call.context())
        answer = {"KeyId": key.arn, "EncryptionAlgorithm": _ALGORITHM}
        return answer | self._released(call, plaintext)

    def _generate_data_key(self, call: Call) -> dict[str, Any]:
        key = self._access.permitted(call, f"kms:{call.operation}")
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
        source = self._access.source(call, "SourceKeyId", "kms:ReEncryptFrom", before)
        target = self._access.find(call, call.parameters["DestinationKeyId"], "kms:ReEncryptTo")
        self._access.authorise(call, target, "kms:ReEncryptTo", after)
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

    @staticmethod
    def _check_policy_name(call: Call) -> None:
        if call.parameters.get("PolicyName", "default") != "default":
            raise KmsError("NotFoundException", "No such policy exists")


def _data_key_bytes(parameters: Mapping[str, Any]) -> int:
    if ("KeySpec" in parameters) == ("NumberOfBytes" in parameters):
        raise invalid("Please specify either number of bytes or key spec.")
    size = parameters.get("NumberOfBytes")
    return int(_DATA_KEY_BYTES[parameters["KeySpec"]] if size is None else size)
