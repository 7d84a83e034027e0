"""The operations of the double: authorise, act, seal to the recipient."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from casemate_devkit.kms.access import Call, KeyAccess
from casemate_devkit.kms.errors import KmsError, Reason, invalid, unsupported
from casemate_devkit.kms.grant_operations import Grants
from casemate_devkit.kms.keys import AGREEMENT, ENCRYPTION, SYMMETRIC, KeyStore, metadata
from casemate_devkit.kms.lifecycle import Lifecycle
from casemate_devkit.kms.management import Aliases, Keys
from casemate_devkit.kms.moto_operations import MotoOperations
from casemate_devkit.kms.pairs import agree, new_pair
from casemate_devkit.kms.recipient import DOCUMENT_AGE_MAX, tampered, verify_recipient
from casemate_devkit.kms.state import is_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from moto.kms.models import Key

Answer = dict[str, Any]

_DATA_KEY_BYTES: Final = {"AES_128": 16, "AES_256": 32}
_WITHOUT: Final = "WithoutPlaintext"


class KmsService:
    """All operations over one key store.

    ``clock`` returns milliseconds since 1970; ``state`` is where keys last, None keeps them in
    memory.
    """

    def __init__(
        self, roots: frozenset[bytes], clock: Callable[[], int], state: Path | None = None
    ) -> None:
        self._roots = roots
        self._clock = clock
        self._keys = KeyStore(state)
        self._access = KeyAccess(self._keys)
        self._operations: dict[str, Callable[[Call], Answer]] = {
            "Decrypt": self._decrypt,
            "DeriveSharedSecret": self._derive_shared_secret,
            "Encrypt": self._encrypt,
            "GenerateDataKey": self._generate_data_key,
            "GenerateDataKeyPair": self._generate_pair,
            f"GenerateDataKeyPair{_WITHOUT}": self._generate_pair,
            f"GenerateDataKey{_WITHOUT}": self._generate_data_key,
            "GenerateRandom": self._generate_random,
            "GetPublicKey": self._get_public_key,
            "ReEncrypt": self._re_encrypt,
        }
        for part in (Keys, Aliases, Grants, Lifecycle, MotoOperations):
            self._operations |= part(self._keys, self._access).operations

    @property
    def keys(self) -> KeyStore:
        """The keys, as moto keeps them."""
        return self._keys

    def answer(self, call: Call) -> Answer:
        """Return the answer's members; raises KmsError.

        A Recipient is verified before anything else: a bad one is an error of its own and never
        falls back to an answer in plaintext.
        """
        operation = self._operations.get(call.operation)
        if operation is None:
            text = f"the double does not implement {call.operation}"
            raise KmsError("AccessDeniedException", text, Reason("unsupported", text))
        if call.parameters.get("DryRun"):
            raise unsupported("The double does not support DryRun.")
        known = {grant.token for key in self._keys.all() for grant in self._keys.grants_of(key)}
        if not known.issuperset(call.parameters.get("GrantTokens", ())):
            raise KmsError("InvalidGrantTokenException", "There is no grant with this token.")
        for name in ("EncryptionAlgorithm", "SourceEncryptionAlgorithm"):
            if call.parameters.get(name, SYMMETRIC) != SYMMETRIC:
                raise invalid(f"{name} does not fit a symmetric key.")
        if "Recipient" in call.parameters:
            recipient = call.parameters["Recipient"]
            age = self._document_age(call)
            call.recipient = verify_recipient(recipient, self._roots, self._clock(), age)
        answer = operation(call)
        if "KeyId" in answer and call.faults.take("wrong-key-id", call.operation) is not None:
            answer["KeyId"] = answer["KeyId"][:-12] + "0" * 12
        return answer

    @staticmethod
    def _document_age(call: Call) -> int:
        stale = call.faults.take("stale-documents", call.operation)
        return DOCUMENT_AGE_MAX if stale is None else int(stale * 1000)

    def _encrypt(self, call: Call) -> Answer:
        key = _usable(self._access.permitted(call), ENCRYPTION)
        plaintext = call.parameters["Plaintext"]
        blob = self._keys.encrypt(key, plaintext, call.context())
        return {"CiphertextBlob": blob, "KeyId": key.arn, "EncryptionAlgorithm": SYMMETRIC}

    def _decrypt(self, call: Call) -> Answer:
        key = self._access.source(call, "KeyId", "kms:Decrypt", call.context())
        plaintext = self._keys.decrypt(key, call.parameters["CiphertextBlob"], call.context())
        answer = {"KeyId": key.arn, "EncryptionAlgorithm": SYMMETRIC}
        return answer | self._released(call, plaintext)

    def _generate_data_key(self, call: Call) -> Answer:
        key = _usable(self._access.permitted(call), ENCRYPTION)
        plaintext = os.urandom(_data_key_bytes(call.parameters))
        blob = self._keys.encrypt(key, plaintext, call.context())
        answer = {"CiphertextBlob": blob, "KeyId": key.arn}
        if call.operation.endswith(_WITHOUT):
            return answer
        return answer | self._released(call, plaintext)

    def _generate_pair(self, call: Call) -> Answer:
        key = _usable(self._access.permitted(call), ENCRYPTION)
        spec = call.parameters["KeyPairSpec"]
        private, public = new_pair(spec)
        answer = {
            "PrivateKeyCiphertextBlob": self._keys.encrypt(key, private, call.context()),
            "PublicKey": public,
            "KeyId": key.arn,
            "KeyPairSpec": spec,
        }
        if call.operation.endswith(_WITHOUT):
            return answer
        return answer | self._released(call, private, "PrivateKeyPlaintext")

    def _generate_random(self, call: Call) -> Answer:
        return self._released(call, os.urandom(call.parameters.get("NumberOfBytes", 32)))

    def _derive_shared_secret(self, call: Call) -> Answer:
        key = _usable(self._access.permitted(call), AGREEMENT)
        secret = agree(key, call.parameters["PublicKey"])
        answer = {
            "KeyId": key.arn,
            "KeyAgreementAlgorithm": call.parameters["KeyAgreementAlgorithm"],
            "KeyOrigin": "AWS_KMS",
        }
        return answer | self._released(call, secret, "SharedSecret")

    def _get_public_key(self, call: Call) -> Answer:
        """As moto, whose answer however names algorithms that do not fit the key's usage.

        And moto has a private key for a symmetric key, too.
        """
        key = self._access.permitted(call)
        if not is_pair(key.key_spec):
            raise _wrong_usage(key)
        told = metadata(key)
        shown = ("CustomerMasterKeySpec", "KeySpec", "KeyUsage")
        answer = {name: told[name] for name in told if name in shown or name.endswith("Algorithms")}
        return {"KeyId": key.arn, "PublicKey": key.private_key.public_key()} | answer

    def _re_encrypt(self, call: Call) -> Answer:
        before = call.context("SourceEncryptionContext")
        after = call.context("DestinationEncryptionContext")
        source = self._access.source(call, "SourceKeyId", "kms:ReEncryptFrom", before)
        target = self._access.find(call, call.parameters["DestinationKeyId"], "kms:ReEncryptTo")
        self._access.authorise(call, target, "kms:ReEncryptTo", after)
        plaintext = self._keys.decrypt(source, call.parameters["CiphertextBlob"], before)
        blob = self._keys.encrypt(_usable(target, ENCRYPTION), plaintext, after)
        return {
            "CiphertextBlob": blob,
            "SourceKeyId": source.arn,
            "KeyId": target.arn,
            "SourceEncryptionAlgorithm": SYMMETRIC,
            "DestinationEncryptionAlgorithm": SYMMETRIC,
        }

    @staticmethod
    def _released(call: Call, plaintext: bytes, name: str = "Plaintext") -> Answer:
        """Return the plaintext, or its envelope if a recipient was stated: never both.

        Unless a fault was asked for: then what AWS would never answer.
        """
        if call.recipient is None:
            return {name: plaintext}

        def struck(kind: str) -> bool:
            return call.faults.take(kind, call.operation) is not None

        if struck("plaintext-only"):
            return {name: plaintext}
        content = os.urandom(len(plaintext)) if struck("forged-envelope") else plaintext
        envelope = call.recipient.seal(content)
        if struck("tampered-envelope"):
            envelope = tampered(envelope)
        leak = {name: plaintext} if struck("plaintext-leak") else {}
        return {"CiphertextForRecipient": envelope} | leak


def _usable(key: Key, usage: str) -> Key:
    if key.key_usage != usage:
        raise _wrong_usage(key)
    return key


def _wrong_usage(key: Key) -> KmsError:
    text = f"{key.arn} key usage is {key.key_usage} which is not valid for this operation."
    return KmsError("InvalidKeyUsageException", text)


def _data_key_bytes(parameters: Mapping[str, Any]) -> int:
    if ("KeySpec" in parameters) == ("NumberOfBytes" in parameters):
        raise invalid("Please specify either number of bytes or key spec.")
    size = parameters.get("NumberOfBytes")
    return int(_DATA_KEY_BYTES[parameters["KeySpec"]] if size is None else size)
