"""The KMS double against real boto3 clients: what AWS KMS refuses, it refuses (A41 to A53, K1)."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.attestation.configuration import KmsConfiguration
from casemate.attestation.policy import Release
from casemate.errors import Code, KeyReleaseError
from casemate.kms_context import data_context
from casemate.kms_policy import attested_key_policy
from casemate_devkit.kms import KmsDouble, Principal
from casemate_devkit.kms.errors import REASON_HEADER
from casemate_devkit.kms.server import BODY_MAX
from casemate_kms.client import AttestedKms
from casemate_kms.cms import open_enveloped
from tests.support import nitro_pki

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CLINIC, VENDOR = "111122223333", "444455556666"
REGION, OTHER_REGION = "eu-central-1", "us-east-1"
ADMIN = Principal("AKIAADMIN", "admin-secret", f"arn:aws:iam::{CLINIC}:role/kms-admin")
SEALER = Principal("AKIASEALER", "sealer-secret", f"arn:aws:iam::{CLINIC}:role/clinic-app")
ENCLAVE = Principal("ASIAENCLAVE", "enclave-secret", f"arn:aws:iam::{VENDOR}:role/enclave", "token")
HOST_ADMIN = Principal("AKIAHOST", "host-secret", f"arn:aws:iam::{VENDOR}:user/operator")
PRINCIPALS = (ADMIN, SEALER, ENCLAVE, HOST_ADMIN)
CONTEXT = data_context("clinic.example/screening")
RELEASE = Release("0.1.0", *(bytes([index]) * 48 for index in (0xA0, 0xA1, 0xA2, 0xB0)))
OTHER = Release("0.2.0", *(bytes([index]) * 48 for index in (0xC0, 0xC1, 0xC2, 0xD0)))
ALGORITHM = "RSAES_OAEP_SHA_256"
SECRET = b"planted-plaintext-for-greps-0123"


class Key(NamedTuple):
    arn: str
    blob: bytes


@pytest.fixture(scope="module")
def chain() -> nitro_pki.Chain:
    return nitro_pki.issue(nitro_pki.real_shape(), now=now_ms())


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory, chain: nitro_pki.Chain) -> Iterator[KmsDouble]:
    directory = tmp_path_factory.mktemp("kms")
    regions = (REGION, OTHER_REGION)
    with KmsDouble(directory, roots=chain.roots, principals=PRINCIPALS, regions=regions) as running:
        yield running


@pytest.fixture(scope="module")
def key(double: KmsDouble) -> Key:
    """A key under the policy that Casemate writes, and a ciphertext under it."""
    admin = double.client(ADMIN)
    policy = attested_key_policy(
        account_admin=ADMIN.arn,
        decrypt_principal=ENCLAVE.arn,
        releases=[RELEASE, OTHER],
        purpose="data",
        scope="clinic.example/screening",
        encrypt_principals=[SEALER.arn],
    )
    arn = admin.create_key(Policy=json.dumps(policy))["KeyMetadata"]["Arn"]
    answer = double.client(SEALER).encrypt(KeyId=arn, Plaintext=SECRET, EncryptionContext=CONTEXT)
    return Key(arn, answer["CiphertextBlob"])


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def registers(release: Release) -> dict[int, bytes]:
    return {index: bytes(48) for index in range(17)} | release.registers


def document(chain: nitro_pki.Chain, public_key: bytes | None, **changes: object) -> bytes:
    fields = {"timestamp": now_ms(), "pcrs": registers(RELEASE), "public_key": public_key}
    return nitro_pki.document(chain, **(fields | changes))


def recipient(data: bytes) -> dict[str, Any]:
    return {"KeyEncryptionAlgorithm": ALGORITHM, "AttestationDocument": data}


def refusal(call: Callable[..., object], **arguments: object) -> tuple[str, dict[str, Any]]:
    """Return the error's type and the double's reason; the call must fail."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    assert "Plaintext" not in response
    reason = json.loads(response["ResponseMetadata"]["HTTPHeaders"][REASON_HEADER])
    return response["Error"]["Code"], reason


def decrypt(double: KmsDouble, key: Key, data: bytes, **changes: object) -> dict[str, Any]:
    arguments = {
        "KeyId": key.arn,
        "CiphertextBlob": key.blob,
        "EncryptionContext": CONTEXT,
        "Recipient": recipient(data),
    }
    merged = {name: value for name, value in (arguments | changes).items() if value is not None}
    answer: dict[str, Any] = double.client(ENCLAVE).decrypt(**merged)
    return answer


# Attested release


def test_attested_decrypt(
    double: KmsDouble, key: Key, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    answer = decrypt(double, key, document(chain, spki(rsa_key)))
    assert "Plaintext" not in answer
    assert answer["KeyId"] == key.arn
    assert answer["EncryptionAlgorithm"] == "SYMMETRIC_DEFAULT"
    assert open_enveloped(answer["CiphertextForRecipient"], rsa_key) == SECRET
    event = double.audit.events()[-1]
    assert (event["decision"], event["principal"]) == ("allowed", ENCLAVE.arn)
    shown = event["additionalEventData"]["recipient"]
    assert shown["attestationDocumentModuleId"] == nitro_pki.MODULE_ID
    assert shown["attestationDocumentEnclaveImageDigest"] == RELEASE.pcr0.hex()
    assert shown["attestationDocumentEnclavePCR16"] == RELEASE.pcr16.hex()


def test_each_release_may_decrypt(
    double: KmsDouble, key: Key, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    answer = decrypt(double, key, document(chain, spki(rsa_key), pcrs=registers(OTHER)))
    assert open_enveloped(answer["CiphertextForRecipient"], rsa_key) == SECRET


@pytest.mark.parametrize("index", [0, 1, 2, 16])
def test_one_differing_register_is_refused_by_name(
    double: KmsDouble,
    key: Key,
    chain: nitro_pki.Chain,
    rsa_key: rsa.RSAPrivateKey,
    index: int,
) -> None:
    changed = registers(RELEASE) | {index: b"\xee" * 48}
    client = double.client(ENCLAVE)
    kind, reason = refusal(
        client.decrypt,
        KeyId=key.arn,
        CiphertextBlob=key.blob,
        EncryptionContext=CONTEXT,
        Recipient=recipient(document(chain, spki(rsa_key), pcrs=changed)),
    )
    assert kind == "AccessDeniedException"
    expected = {
        "pcr": index,
        "policy": [RELEASE.registers[index].hex()],
        "document": "ee" * 48,
    }
    assert reason["pcrs"] == [expected]
    assert f"PCR{index}" in double.audit.events()[-1]["reason"]


def test_registers_of_two_releases_do_not_mix(
    double: KmsDouble, key: Key, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    mixed = registers(RELEASE) | {16: OTHER.pcr16}
    with pytest.raises(ClientError, match="AccessDenied"):
        decrypt(double, key, document(chain, spki(rsa_key), pcrs=mixed))


def test_missing_register_is_refused(
    double: KmsDouble, key: Key, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    shorter = {index: value for index, value in registers(RELEASE).items() if index != 16}
    with pytest.raises(ClientError, match="AccessDenied"):
        decrypt(double, key, document(chain, spki(rsa_key), pcrs=shorter))


@pytest.mark.parametrize("principal", PRINCIPALS, ids=lambda item: item.access_key_id)
def test_nobody_decrypts_without_attestation(
    double: KmsDouble, key: Key, principal: Principal
) -> None:
    client = double.client(principal)
    arguments = {"CiphertextBlob": key.blob, "EncryptionContext": CONTEXT}
    kind, reason = refusal(client.decrypt, KeyId=key.arn, **arguments)
    assert kind == "AccessDeniedException"
    assert reason["code"] == "policy"
    assert refusal(client.decrypt, **arguments)[0] == "AccessDeniedException"


def test_attested_decrypt_needs_the_enclaves_credentials(
    double: KmsDouble, key: Key, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    for principal in (ADMIN, SEALER, HOST_ADMIN):
        kind, _ = refusal(
            double.client(principal).decrypt,
            KeyId=key.arn,
            CiphertextBlob=key.blob,
            EncryptionContext=CONTEXT,
            Recipient=recipient(document(chain, spki(rsa_key))),
        )
        assert kind == "AccessDeniedException"


@pytest.mark.parametrize(
    "context",
    [
        {},
        CONTEXT | {"casemate:scope": "other"},
        CONTEXT | {"more": "x"},
        {name.upper(): value for name, value in CONTEXT.items()},
        CONTEXT | {"casemate:v": "2"},
    ],
)
def test_other_encryption_context_is_refused_by_policy(
    double: KmsDouble,
    key: Key,
    chain: nitro_pki.Chain,
    rsa_key: rsa.RSAPrivateKey,
    context: dict[str, str],
) -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        decrypt(double, key, document(chain, spki(rsa_key)), EncryptionContext=context)


# Recipients that are refused (A41, A43, A44): an error each, never a plaintext


@pytest.fixture(scope="module")
def open_key(double: KmsDouble) -> Key:
    """A key whose policy lets everybody of the clinic do everything: only Recipient protects."""
    client = double.client(ADMIN)
    arn = client.create_key()["KeyMetadata"]["Arn"]
    return Key(arn, client.encrypt(KeyId=arn, Plaintext=SECRET)["CiphertextBlob"])


def refused_recipient(double: KmsDouble, open_key: Key, data: object) -> dict[str, Any]:
    kind, reason = refusal(
        double.client(ADMIN).decrypt, CiphertextBlob=open_key.blob, Recipient=data
    )
    assert kind == "ValidationException"
    assert reason["code"] == "recipient"
    return reason


def test_default_policy_releases_without_attestation(double: KmsDouble, open_key: Key) -> None:
    """The danger that key policies must exclude (A45), shown and not hidden."""
    for principal in (ADMIN, SEALER):
        client = double.client(principal)
        assert client.decrypt(CiphertextBlob=open_key.blob)["Plaintext"] == SECRET
    kind, _ = refusal(
        double.client(HOST_ADMIN).decrypt, KeyId=open_key.arn, CiphertextBlob=open_key.blob
    )
    assert kind == "AccessDeniedException"


def test_documents_that_do_not_verify(
    double: KmsDouble, open_key: Key, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    good = document(chain, spki(rsa_key))
    flipped = bytearray(good)
    flipped[-1] ^= 1
    stranger = nitro_pki.issue(nitro_pki.real_shape(), now=now_ms())
    bad = [b"x", good[:-1], good + b"\0", bytes(flipped), document(stranger, spki(rsa_key))]
    for data in bad:
        refused_recipient(double, open_key, recipient(data))
    accepted = double.client(ADMIN).decrypt(CiphertextBlob=open_key.blob, Recipient=recipient(good))
    assert "Plaintext" not in accepted


@pytest.mark.parametrize("age", [300_000 + 30_000, -60_000 - 30_000])
def test_document_of_another_time(
    double: KmsDouble,
    open_key: Key,
    chain: nitro_pki.Chain,
    rsa_key: rsa.RSAPrivateKey,
    age: int,
) -> None:
    data = document(chain, spki(rsa_key), timestamp=now_ms() - age)
    reason = refused_recipient(double, open_key, recipient(data))
    assert "too old or of the future" in reason["text"]


def test_document_of_an_instance_is_not_an_enclaves(
    double: KmsDouble, open_key: Key, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    data = document(chain, spki(rsa_key), pcrs=..., nitrotpm_pcrs=registers(RELEASE))
    reason = refused_recipient(double, open_key, recipient(data))
    assert "not that of an enclave" in reason["text"]


def strange_keys() -> list[bytes | None]:
    modern = rsa.generate_private_key(65537, 2048)
    small = rsa.generate_private_key(65537, 1024)
    numbers = modern.public_key().public_numbers()
    cubed = rsa.RSAPublicNumbers(3, numbers.n).public_key()
    good = spki(modern)
    pkcs1 = modern.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    return [
        None,
        b"",
        b"x",
        spki(ec.generate_private_key(ec.SECP256R1())),
        spki(small),
        cubed.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        good + b"\0",
        good[:-1],
        b"\x30\x83\x00" + good[2:],  # a length that is not the shortest
        pkcs1,
        modern.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    ]


def test_public_keys_that_are_refused(
    double: KmsDouble, open_key: Key, chain: nitro_pki.Chain
) -> None:
    for public_key in strange_keys():
        reason = refused_recipient(double, open_key, recipient(document(chain, public_key)))
        assert "public_key" in reason["text"]


def raw(double: KmsDouble, body: bytes, operation: str = "Decrypt") -> tuple[int, dict[str, Any]]:
    """Sign ``body`` by hand and send it; returns status and answer."""
    host = f"localhost:{double.port}"
    headers = {
        "Host": host,
        "X-Amz-Target": f"TrentService.{operation}",
        "Content-Type": "application/x-amz-json-1.1",
    }
    aws = AWSRequest("POST", f"https://{host}/", headers=headers, data=body)
    credentials = Credentials(ADMIN.access_key_id, ADMIN.secret_access_key)
    SigV4Auth(credentials, "kms", REGION).add_auth(aws)
    context = ssl.create_default_context(cafile=str(double.ca_pem))
    connection = http.client.HTTPSConnection("localhost", double.port, context=context, timeout=60)
    try:
        connection.request("POST", "/", body, dict(aws.headers.items()))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    "member",
    [
        '"Recipient": null',
        '"Recipient": ""',
        '"Recipient": []',
        '"Recipient": {}',
        '"Recipient": {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}',
        '"Recipient": {"AttestationDocument": "aGVsbG8="}',
        '"Recipient": {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA1", "AttestationDocument": "aGk="}',
        '"Recipient": {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": ""}',
        '"Recipient": {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": 7}',
        '"Recipient": {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": "!"}',
        '"recipient": {}',
        '"Receipient": {}',
        '"Recipient": {}, "Recipient": {}',
    ],
)
def test_malformed_recipient_is_an_error_and_no_plaintext(
    double: KmsDouble, open_key: Key, member: str
) -> None:
    blob = base64.b64encode(open_key.blob).decode()
    status, answer = raw(double, f'{{"CiphertextBlob": "{blob}", {member}}}'.encode())
    assert status == 400
    assert answer["__type"] in {"SerializationException", "ValidationException"}
    assert "Plaintext" not in answer
    status, answer = raw(double, f'{{"CiphertextBlob": "{blob}"}}'.encode())
    assert (status, base64.b64decode(answer["Plaintext"])) == (200, SECRET)


def test_recipient_where_kms_has_none(
    double: KmsDouble, open_key: Key, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    data = base64.b64encode(document(chain, spki(rsa_key))).decode()
    body = {
        "KeyId": open_key.arn,
        "Plaintext": "aGVsbG8=",
        "Recipient": {"KeyEncryptionAlgorithm": ALGORITHM, "AttestationDocument": data},
    }
    status, answer = raw(double, json.dumps(body).encode(), "Encrypt")
    assert (status, answer["__type"]) == (400, "ValidationException")
    del body["Recipient"]
    assert raw(double, json.dumps(body).encode(), "Encrypt")[0] == 200


def test_data_key_and_random_for_a_recipient(
    double: KmsDouble, open_key: Key, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    client = double.client(ADMIN)
    to_enclave = recipient(document(chain, spki(rsa_key)))
    made = client.generate_data_key(KeyId=open_key.arn, KeySpec="AES_256", Recipient=to_enclave)
    assert "Plaintext" not in made
    data_key = open_enveloped(made["CiphertextForRecipient"], rsa_key)
    assert client.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == data_key
    random = client.generate_random(NumberOfBytes=24, Recipient=to_enclave)
    assert "Plaintext" not in random
    assert len(open_enveloped(random["CiphertextForRecipient"], rsa_key)) == 24


class Attester:
    """Documents of the throw-away PKI, for the enclave's own KMS client."""

    def __init__(self, chain: nitro_pki.Chain, release: Release) -> None:
        self._chain = chain
        self._release = release

    def attest(
        self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None
    ) -> bytes:
        values = registers(self._release)
        return document(self._chain, public_key, pcrs=values, user_data=user_data, nonce=nonce)


def release_to_enclave(
    double: KmsDouble, key: Key, chain: nitro_pki.Chain, release: Release
) -> bytes:
    def dial(host: str, port: int) -> socket.socket:
        assert (host, port) == (f"kms.{REGION}.amazonaws.com", 443)
        return socket.create_connection(("127.0.0.1", double.port), timeout=60)

    configuration = KmsConfiguration("aws", (REGION,), (double.ca_der,))
    kms = AttestedKms(configuration, Attester(chain, release), dial)
    kms.set_credentials(
        ENCLAVE.access_key_id, ENCLAVE.secret_access_key, ENCLAVE.session_token, None
    )
    try:
        return kms.decrypt(
            key_arn=key.arn,
            ciphertext_blob=key.blob,
            context=CONTEXT,
            deadline=time.monotonic() + 60,
        )
    finally:
        kms.close()


def test_release_to_the_enclaves_own_client(
    double: KmsDouble, key: Key, chain: nitro_pki.Chain
) -> None:
    assert release_to_enclave(double, key, chain, RELEASE) == SECRET
    tampered = dataclasses.replace(RELEASE, pcr2=b"\xee" * 48)
    with pytest.raises(KeyReleaseError) as caught:
        release_to_enclave(double, key, chain, tampered)
    assert caught.value.code is Code.KEY_RELEASE_DENIED


# Keys, accounts, regions


def test_cross_account_calls_are_judged_by_the_keys_policy(double: KmsDouble) -> None:
    vendor = double.client(HOST_ADMIN)
    arn = vendor.create_key()["KeyMetadata"]["Arn"]
    assert f":{VENDOR}:" in arn
    assert vendor.describe_key(KeyId=arn)["KeyMetadata"]["AWSAccountId"] == VENDOR
    clinic = double.client(ADMIN)
    assert refusal(clinic.describe_key, KeyId=arn)[0] == "AccessDeniedException"
    bare = arn.rpartition("/")[2]
    assert refusal(clinic.describe_key, KeyId=bare)[0] == "NotFoundException"
    assert arn not in [item["KeyArn"] for item in clinic.list_keys()["Keys"]]


@pytest.mark.parametrize(
    "key_id",
    ["alias/data", "mrk-6c1f6aae9f1c4c9f8b1c6f3f1f1f1f1f", "x", "*"],
)
def test_key_names_that_are_refused(double: KmsDouble, key_id: str) -> None:
    assert refusal(double.client(ADMIN).describe_key, KeyId=key_id)[0] == "NotFoundException"


def test_region_partition_and_key_must_fit(double: KmsDouble, key: Key, open_key: Key) -> None:
    elsewhere = double.client(ADMIN, OTHER_REGION)
    assert refusal(elsewhere.describe_key, KeyId=key.arn)[0] == "NotFoundException"
    assert refusal(elsewhere.decrypt, CiphertextBlob=open_key.blob)[0] == "AccessDeniedException"
    client = double.client(ADMIN)
    foreign = key.arn.replace("arn:aws:", "arn:aws-cn:")
    assert refusal(client.describe_key, KeyId=foreign)[0] == "NotFoundException"
    second = client.create_key()["KeyMetadata"]["Arn"]
    kind, _ = refusal(client.decrypt, KeyId=second, CiphertextBlob=open_key.blob)
    assert kind == "IncorrectKeyException"


def test_ciphertext_is_bound_to_its_context(double: KmsDouble, open_key: Key) -> None:
    client = double.client(ADMIN)
    made = client.encrypt(KeyId=open_key.arn, Plaintext=b"x", EncryptionContext={"ab": "c"})
    for context in ({}, {"a": "bc"}, {"ab": "c", "d": "e"}):
        kind, _ = refusal(
            client.decrypt, CiphertextBlob=made["CiphertextBlob"], EncryptionContext=context
        )
        assert kind == "InvalidCiphertextException"
    changed = bytearray(made["CiphertextBlob"])
    changed[-1] ^= 1
    kind, _ = refusal(
        client.decrypt,
        KeyId=open_key.arn,
        CiphertextBlob=bytes(changed),
        EncryptionContext={"ab": "c"},
    )
    assert kind == "InvalidCiphertextException"


def test_reencrypt_needs_both_keys(double: KmsDouble, key: Key, open_key: Key) -> None:
    for principal in (ADMIN, SEALER, ENCLAVE):
        kind, _ = refusal(
            double.client(principal).re_encrypt,
            CiphertextBlob=key.blob,
            SourceEncryptionContext=CONTEXT,
            DestinationKeyId=open_key.arn,
        )
        assert kind == "AccessDeniedException"
    client = double.client(ADMIN)
    kind, _ = refusal(client.re_encrypt, CiphertextBlob=open_key.blob, DestinationKeyId=key.arn)
    assert kind == "AccessDeniedException"
    second = client.create_key()["KeyMetadata"]["Arn"]
    moved = client.re_encrypt(CiphertextBlob=open_key.blob, DestinationKeyId=second)
    assert (moved["SourceKeyId"], moved["KeyId"]) == (open_key.arn, second)
    assert client.decrypt(CiphertextBlob=moved["CiphertextBlob"])["Plaintext"] == SECRET


def test_management_is_by_policy(double: KmsDouble, key: Key) -> None:
    admin, sealer = double.client(ADMIN), double.client(SEALER)
    text = admin.get_key_policy(KeyId=key.arn)["Policy"]
    assert sealer.get_key_policy(KeyId=key.arn)["Policy"] == text
    assert refusal(sealer.put_key_policy, KeyId=key.arn, Policy=text)[0] == "AccessDeniedException"
    enclave = double.client(ENCLAVE)
    assert refusal(enclave.get_key_policy, KeyId=key.arn)[0] == "AccessDeniedException"
    admin.put_key_policy(KeyId=key.arn, PolicyName="default", Policy=text)
    without_admin = json.loads(text)
    del without_admin["Statement"][0]
    for bad in ("{}", "x", json.dumps(without_admin)):
        kind, _ = refusal(admin.put_key_policy, KeyId=key.arn, Policy=bad)
        assert kind == "MalformedPolicyDocumentException"


def test_what_is_not_implemented_is_denied(double: KmsDouble, key: Key) -> None:
    client = double.client(ADMIN)
    replica = {"KeyId": key.arn, "ReplicaRegion": OTHER_REGION}
    kind, reason = refusal(client.replicate_key, **replica)
    assert (kind, reason["code"]) == ("AccessDeniedException", "unsupported")
    assert refusal(client.create_key, MultiRegion=True)[0] == "UnsupportedOperationException"
    assert refusal(client.create_key, KeySpec="RSA_2048")[0] == "UnsupportedOperationException"
    kind, _ = refusal(client.decrypt, CiphertextBlob=key.blob, GrantTokens=["x"])
    assert kind == "InvalidGrantTokenException"
    kind, _ = refusal(client.decrypt, CiphertextBlob=key.blob, DryRun=True)
    assert kind == "UnsupportedOperationException"


def test_unknown_condition_denies_and_is_logged(double: KmsDouble) -> None:
    client = double.client(ADMIN)
    default = json.loads(
        client.get_key_policy(KeyId=client.create_key()["KeyMetadata"]["Arn"])["Policy"]
    )
    odd = {"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}
    use = {
        "Sid": "Odd",
        "Effect": "Allow",
        "Principal": {"AWS": HOST_ADMIN.arn},
        "Action": "kms:Encrypt",
        "Resource": "*",
        "Condition": odd,
    }
    default["Statement"].append(use)
    arn = client.create_key(Policy=json.dumps(default))["KeyMetadata"]["Arn"]
    kind, reason = refusal(double.client(HOST_ADMIN).encrypt, KeyId=arn, Plaintext=b"x")
    assert kind == "AccessDeniedException"
    assert "not understood: IpAddress aws:SourceIp" in reason["text"]
    assert double.audit.events()[-1]["notUnderstood"] == ['statement "Odd": IpAddress aws:SourceIp']


# Signatures and the wire


def test_signatures(double: KmsDouble) -> None:
    for principal, expected in (
        (dataclasses.replace(ADMIN, secret_access_key="wrong"), "InvalidSignatureException"),
        (dataclasses.replace(ADMIN, access_key_id="AKIANOBODY"), "UnrecognizedClientException"),
        (dataclasses.replace(ENCLAVE, session_token="stolen"), "UnrecognizedClientException"),
        (dataclasses.replace(ENCLAVE, session_token=None), "UnrecognizedClientException"),
    ):
        kind, reason = refusal(double.client(principal).list_keys)
        assert (kind, reason["code"]) == (expected, "signature")


def test_region_that_is_not_served(double: KmsDouble) -> None:
    with pytest.raises(ValueError, match="does not serve"):
        double.client(ADMIN, "eu-west-3")
    client = boto3.client(
        "kms",
        region_name="eu-west-3",
        endpoint_url=double.endpoint(REGION),
        verify=str(double.ca_pem),
        aws_access_key_id=ADMIN.access_key_id,
        aws_secret_access_key=ADMIN.secret_access_key,
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )
    assert refusal(client.list_keys)[0] == "InvalidSignatureException"


def tls(double: KmsDouble, name: str = "localhost") -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(double.ca_pem))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    plain = socket.create_connection(("127.0.0.1", double.port), timeout=60)
    return context.wrap_socket(plain, server_hostname=name)


def test_certificate_names_the_endpoints(double: KmsDouble) -> None:
    for name in ("localhost", "127.0.0.1", f"kms.{REGION}.amazonaws.com"):
        tls(double, name).close()
    plain = socket.create_connection(("127.0.0.1", double.port), timeout=60)
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context(cafile=str(double.ca_pem)).wrap_socket(
            plain, server_hostname="kms.eu-west-3.amazonaws.com"
        )
    plain.close()
    assert double.ca_der == ssl.PEM_cert_to_DER_cert(double.ca_pem.read_text())


@pytest.mark.parametrize(
    "head",
    [
        f"Content-Length: {BODY_MAX + 1}",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Content-Length: 2\r\nContent-Length: 2",
        "Transfer-Encoding: chunked",
        "X: no length",
    ],
)
def test_bodies_are_bounded(double: KmsDouble, head: str) -> None:
    with tls(double) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_connections_are_kept_alive(double: KmsDouble) -> None:
    context = ssl.create_default_context(cafile=str(double.ca_pem))
    connection = http.client.HTTPSConnection("localhost", double.port, context=context, timeout=60)
    connection.connect()
    channel = connection.sock
    for _ in range(3):
        connection.request("POST", "/", b"{}")
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (400, True)
        assert connection.sock is channel
    connection.close()


def test_plain_http_gets_nothing(double: KmsDouble) -> None:
    with socket.create_connection(("127.0.0.1", double.port), timeout=60) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\n\r\n")
        try:
            answer = connection.recv(64)
        except ConnectionResetError:
            answer = b""
        assert not answer.startswith(b"HTTP")


def test_nothing_secret_is_logged(
    double: KmsDouble, open_key: Key, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "casemate_devkit")
    client = double.client(ADMIN)
    client.encrypt(KeyId=open_key.arn, Plaintext=SECRET)
    client.decrypt(CiphertextBlob=open_key.blob)
    seen = caplog.text + double.audit.path.read_text()
    planted = [SECRET.decode(), base64.b64encode(SECRET).decode(), SECRET.hex()]
    planted += [item.secret_access_key for item in PRINCIPALS]
    planted += [base64.b64encode(open_key.blob).decode()]
    assert not [text for text in planted if text in seen]


# As a process


def test_as_a_process(tmp_path: Path, chain: nitro_pki.Chain) -> None:
    with KmsDouble(
        tmp_path, roots=chain.roots, principals=PRINCIPALS, regions=(REGION,), mode="process"
    ) as double:
        client = double.client(ADMIN)
        arn = client.create_key()["KeyMetadata"]["Arn"]
        made = client.generate_data_key(KeyId=arn, NumberOfBytes=32)
        opened = client.decrypt(CiphertextBlob=made["CiphertextBlob"], KeyId=arn)
        assert opened["Plaintext"] == made["Plaintext"]
        ca = double.ca_der
        port = double.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    private = ("ca.key", "server.pem", "principals.json")
    assert all((tmp_path / name).stat().st_mode & 0o077 == 0 for name in private)
    with KmsDouble(tmp_path, roots=chain.roots, principals=PRINCIPALS) as again:
        assert again.ca_der == ca
