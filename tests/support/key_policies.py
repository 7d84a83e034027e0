"""Weak key policies, and what an attacker gets out of each from the KMS double."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.attestation.policy import AllowedModel, Release, TrustPolicy
from casemate.kms_context import data_context
from casemate.kms_policy import attested_key_policy
from casemate_devkit.kms import KmsDouble, Principal
from casemate_kms.cms import open_enveloped
from tests.support import nitro_pki

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casemate.kms_policy import KeyPolicy

CLINIC, VENDOR, OUTSIDE = "111122223333", "444455556666", "777788889999"
ADMIN = Principal("AKIAADMIN", "admin-secret", f"arn:aws:iam::{CLINIC}:role/kms-admin")
SEALER = Principal("AKIASEALER", "sealer-secret", f"arn:aws:iam::{CLINIC}:role/clinic-app")
PIPELINE = Principal("AKIACI", "ci-secret", f"arn:aws:iam::{CLINIC}:role/github-deploy")
ENCLAVE = Principal("ASIAENCLAVE", "enclave-secret", f"arn:aws:iam::{VENDOR}:role/enclave", "token")
OUTSIDER = Principal("AKIAOUT", "outside-secret", f"arn:aws:iam::{OUTSIDE}:user/mallory")
PRINCIPALS = (ADMIN, SEALER, PIPELINE, ENCLAVE, OUTSIDER)
SCOPE = "clinic.example/screening"
CONTEXT = data_context(SCOPE)
RELEASE = Release("0.2.0", *(bytes([index]) * 48 for index in (0xA0, 0xA1, 0xA2, 0xB0)))
WITHDRAWN = Release("0.1.0", *(bytes([index]) * 48 for index in (0xC0, 0xC1, 0xC2, 0xD0)))
TRUST = TrustPolicy(
    platform="nitro-enclave",
    audience=SCOPE,
    roots=frozenset([b"\x01" * 32]),
    evidence="fresh",
    maximum_age_seconds=300,
    allow_debug=False,
    releases=(RELEASE,),
    models=(AllowedModel("wdbc", b"\x02" * 32),),
)
PCR = "kms:RecipientAttestation:PCR"
IMAGE = "kms:RecipientAttestation:ImageSha384"
IN = "kms:EncryptionContext:casemate:"
NAMES = "kms:EncryptionContextKeys"
SECRET = b"planted-plaintext-for-greps-0123"
OTHER = bytes([0xEE]) * 48  # a register of the attacker's own enclave
HEX = {index: value.hex() for index, value in RELEASE.registers.items()}
PINNED = {f"{PCR}{index}": value for index, value in HEX.items()}
EXACT = {f"{IN}v": "1", f"{IN}purpose": "data", f"{IN}scope": SCOPE}


def good(*releases: Release) -> KeyPolicy:
    """The policy that Casemate writes."""
    return attested_key_policy(
        account_admin=ADMIN.arn,
        decrypt_principal=ENCLAVE.arn,
        releases=releases or (RELEASE,),
        purpose="data",
        scope=SCOPE,
        encrypt_principals=[SEALER.arn],
    )


def allow(principal: object, action: object, condition: object = None) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Principal": principal, "Action": action, "Resource": "*"}
    return statement | ({"Condition": condition} if condition else {})


def also(*statements: dict[str, Any], denies: bool = False) -> KeyPolicy:
    """The good policy and more; without its Deny statements, which nobody must rely on."""
    policy = good()
    kept = [item for item in policy["Statement"] if denies or item["Effect"] == "Allow"]
    return policy | {"Statement": [*kept, *copy.deepcopy(list(statements))]}


def releasing(change: Callable[[dict[str, Any]], None]) -> KeyPolicy:
    """The good policy without Denies, its Decrypt statement changed."""
    policy = also()
    (statement,) = [item for item in policy["Statement"] if item["Action"] == "kms:Decrypt"]
    change(statement)
    return policy


def attestation(**operators: object) -> KeyPolicy:
    """The good policy with these conditions in place of the four registers."""

    def change(statement: dict[str, Any]) -> None:
        condition = statement["Condition"]
        del condition["StringEqualsIgnoreCase"]
        for operator, block in operators.items():
            assert isinstance(block, dict)
            name = operator.replace("_", ":")
            condition[name] = condition.get(name, {}) | block

    return releasing(change)


def context(change: Callable[[dict[str, Any]], None]) -> KeyPolicy:
    """The good policy, its Decrypt statement's conditions changed; the sealer may encrypt all."""
    policy = releasing(lambda statement: change(statement["Condition"]))
    policy["Statement"].append(allow({"AWS": SEALER.arn}, "kms:Encrypt"))
    return policy


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def registers(*changes: Mapping[int, bytes]) -> dict[int, bytes]:
    """The release's registers, some of them changed."""
    values = {index: bytes(48) for index in range(17)} | RELEASE.registers
    for change in changes:
        values |= change
    return values


@dataclass(frozen=True)
class World:
    """A key under some policy, a ciphertext under it, and who attacks."""

    double: KmsDouble
    chain: nitro_pki.Chain
    rsa_key: rsa.RSAPrivateKey
    arn: str
    blob: bytes

    def recipient(self, values: Mapping[int, bytes]) -> dict[str, Any]:
        data = nitro_pki.document(
            self.chain,
            timestamp=time.time_ns() // 1_000_000,
            pcrs=values,
            public_key=spki(self.rsa_key),
        )
        return {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": data}

    def opened(self, answer: dict[str, Any]) -> bytes:
        assert "Plaintext" not in answer
        return open_enveloped(answer["CiphertextForRecipient"], self.rsa_key)

    def unattested(self, principal: Principal = ENCLAVE, **more: object) -> bytes:
        """What a holder of credentials gets without any enclave."""
        arguments = {"KeyId": self.arn, "CiphertextBlob": self.blob, "EncryptionContext": CONTEXT}
        answer = self.double.client(principal).decrypt(**(arguments | more))
        plaintext: bytes = answer["Plaintext"]
        return plaintext

    def attested(
        self, values: Mapping[int, bytes], principal: Principal = ENCLAVE, **more: object
    ) -> bytes:
        """What an enclave with these registers gets."""
        arguments = {"KeyId": self.arn, "CiphertextBlob": self.blob, "EncryptionContext": CONTEXT}
        to_enclave = {"Recipient": self.recipient(values)}
        client = self.double.client(principal)
        return self.opened(client.decrypt(**(arguments | to_enclave | more)))


def enclave_with(*changes: Mapping[int, bytes]) -> Callable[[World], bytes]:
    """An attack by an enclave with other registers than the release's."""
    return lambda world: world.attested(registers(*changes))


def no_enclave(principal: Principal = ENCLAVE) -> Callable[[World], bytes]:
    """An attack without any enclave."""
    return lambda world: world.unattested(principal)


def foreign_context(changed: Mapping[str, str]) -> Callable[[World], bytes]:
    """An attack that has the right enclave open a ciphertext made for something else."""

    def attack(world: World) -> bytes:
        made = world.double.client(SEALER).encrypt(
            KeyId=world.arn, Plaintext=SECRET, EncryptionContext=dict(changed)
        )
        return world.attested(
            registers(), CiphertextBlob=made["CiphertextBlob"], EncryptionContext=dict(changed)
        )

    return attack


def as_outsider(world: World) -> bytes:
    return world.attested(registers(), OUTSIDER)


def by_grant(world: World) -> bytes:
    world.double.client(ENCLAVE).create_grant(
        KeyId=world.arn, GranteePrincipal=ENCLAVE.arn, Operations=["Decrypt"]
    )
    return world.unattested()


def by_re_encryption(world: World) -> bytes:
    client = world.double.client(ENCLAVE)
    own = client.create_key()["KeyMetadata"]["Arn"]
    moved = client.re_encrypt(
        CiphertextBlob=world.blob,
        SourceKeyId=world.arn,
        SourceEncryptionContext=CONTEXT,
        DestinationKeyId=own,
    )
    plaintext: bytes = client.decrypt(CiphertextBlob=moved["CiphertextBlob"])["Plaintext"]
    return plaintext


def by_data_key(world: World) -> bytes:
    """The host passes off a data key it knows as the data owner's."""
    client = world.double.client(ENCLAVE)
    made = client.generate_data_key(KeyId=world.arn, KeySpec="AES_256", EncryptionContext=CONTEXT)
    inside = world.attested(registers(), CiphertextBlob=made["CiphertextBlob"])
    assert inside == made["Plaintext"]
    return SECRET


def by_new_policy(principal: Principal) -> Callable[[World], bytes]:
    """An attack that replaces the policy and decrypts."""

    def attack(world: World) -> bytes:
        open_to_all = {
            "Version": "2012-10-17",
            "Statement": [allow({"AWS": principal.arn}, "kms:*")],
        }
        client = world.double.client(principal)
        client.put_key_policy(KeyId=world.arn, Policy=json.dumps(open_to_all))
        return world.unattested(principal)

    return attack


def by_alias(world: World) -> bytes:
    """Whoever may make aliases makes the condition hold."""
    world.double.client(SEALER).create_alias(
        AliasName=f"alias/{time.time_ns()}-released", TargetKeyId=world.arn
    )
    return world.unattested(SEALER)


def by_derivation(world: World) -> bytes:
    """Derive the shared secret of a key agreement without an enclave."""
    own = ec.generate_private_key(ec.SECP256R1())
    client = world.double.client(ENCLAVE)
    answer = client.derive_shared_secret(
        KeyId=world.arn, KeyAgreementAlgorithm="ECDH", PublicKey=spki(own)
    )
    public = world.double.client(SEALER).get_public_key(KeyId=world.arn)["PublicKey"]
    assert answer["SharedSecret"] == own.exchange(ec.ECDH(), _load(public))
    return SECRET


def _load(public: bytes) -> ec.EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        load_der_public_key,
    )

    key = load_der_public_key(public)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key
