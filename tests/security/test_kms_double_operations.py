"""The double as a product: the five Recipient operations, grants, aliases, states, what lasts."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key

from casemate_devkit.kms import KmsDouble, Principal
from casemate_devkit.kms.errors import REASON_HEADER
from casemate_kms.cms import open_enveloped
from tests.support import nitro_pki
from tests.support.key_policies import ADMIN, ENCLAVE, OUTSIDER, PRINCIPALS, SEALER, SECRET, spki

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTEXT = {"tenant": "a", "case": "1"}


@pytest.fixture(scope="module")
def chain() -> nitro_pki.Chain:
    return nitro_pki.issue(nitro_pki.real_shape(), now=now_ms())


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory, chain: nitro_pki.Chain) -> Iterator[KmsDouble]:
    directory = tmp_path_factory.mktemp("kms")
    with KmsDouble(directory, roots=chain.roots, principals=PRINCIPALS) as running:
        yield running


@pytest.fixture
def recipient(chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey) -> dict[str, Any]:
    registers = {index: bytes([index + 1]) * 48 for index in range(17)}
    data = nitro_pki.document(chain, timestamp=now_ms(), pcrs=registers, public_key=spki(rsa_key))
    return {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": data}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def new_key(double: KmsDouble, **arguments: object) -> str:
    arn: str = double.client(ADMIN).create_key(**arguments)["KeyMetadata"]["Arn"]
    return arn


def refusal(call: Callable[..., object], **arguments: object) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    assert not {"Plaintext", "SharedSecret", "PrivateKeyPlaintext"} & response.keys()
    assert json.loads(response["ResponseMetadata"]["HTTPHeaders"][REASON_HEADER])["code"]
    code: str = response["Error"]["Code"]
    return code


# The five operations that take a Recipient


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_SECG_P256K1", "RSA_2048"])
def test_key_pairs(
    double: KmsDouble, rsa_key: rsa.RSAPrivateKey, recipient: dict[str, Any], spec: str
) -> None:
    client, arn = double.client(ADMIN), new_key(double)
    made = client.generate_data_key_pair(
        KeyId=arn, KeyPairSpec=spec, EncryptionContext=CONTEXT, Recipient=recipient
    )
    assert "PrivateKeyPlaintext" not in made
    private = open_enveloped(made["CiphertextForRecipient"], rsa_key)
    again = client.decrypt(
        CiphertextBlob=made["PrivateKeyCiphertextBlob"], EncryptionContext=CONTEXT
    )
    assert again["Plaintext"] == private
    key = load_der_private_key(private, None)
    assert isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey))
    assert spki(key) == made["PublicKey"]
    plain = client.generate_data_key_pair(KeyId=arn, KeyPairSpec=spec)
    assert "CiphertextForRecipient" not in plain
    load_der_private_key(plain["PrivateKeyPlaintext"], None)
    blind = client.generate_data_key_pair_without_plaintext(KeyId=arn, KeyPairSpec=spec)
    assert not {"PrivateKeyPlaintext", "CiphertextForRecipient"} & blind.keys()


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_shared_secrets(
    double: KmsDouble,
    rsa_key: rsa.RSAPrivateKey,
    recipient: dict[str, Any],
    curve: ec.EllipticCurve,
) -> None:
    name = f"ECC_NIST_P{curve.key_size}"
    arn = new_key(double, KeySpec=name, KeyUsage="KEY_AGREEMENT")
    client, own = double.client(ADMIN), ec.generate_private_key(curve)
    arguments = {"KeyId": arn, "KeyAgreementAlgorithm": "ECDH", "PublicKey": spki(own)}
    public = load_der_public_key(client.get_public_key(KeyId=arn)["PublicKey"])
    assert isinstance(public, ec.EllipticCurvePublicKey)
    secret = own.exchange(ec.ECDH(), public)
    answer = client.derive_shared_secret(**arguments, Recipient=recipient)
    assert "SharedSecret" not in answer
    assert open_enveloped(answer["CiphertextForRecipient"], rsa_key) == secret
    assert client.derive_shared_secret(**arguments)["SharedSecret"] == secret
    for peer in (b"x", spki(ec.generate_private_key(ec.SECP256K1())), spki(rsa_key)):
        kind = refusal(client.derive_shared_secret, **(arguments | {"PublicKey": peer}))
        assert kind == "ValidationException"
    assert refusal(client.encrypt, KeyId=arn, Plaintext=b"x") == "InvalidKeyUsageException"


def test_key_usage_is_kept(double: KmsDouble) -> None:
    client, arn = double.client(ADMIN), new_key(double)
    own = spki(ec.generate_private_key(ec.SECP256R1()))
    derive = {"KeyId": arn, "KeyAgreementAlgorithm": "ECDH", "PublicKey": own}
    assert refusal(client.derive_shared_secret, **derive) == "InvalidKeyUsageException"
    assert refusal(client.get_public_key, KeyId=arn) == "InvalidKeyUsageException"
    for spec in ("RSA_2048", "HMAC_256", "SM2", "ECC_NIST_P256"):
        kind = refusal(client.create_key, KeySpec=spec, KeyUsage="ENCRYPT_DECRYPT")
        assert kind == "UnsupportedOperationException"


@pytest.mark.parametrize("change", [{"AttestationDocument": b"x"}, {"KeyEncryptionAlgorithm": "X"}])
def test_bad_recipients_are_errors_for_all_five(
    double: KmsDouble, recipient: dict[str, Any], change: dict[str, Any]
) -> None:
    client, arn = double.client(ADMIN), new_key(double)
    agreement = new_key(double, KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT")
    blob = client.encrypt(KeyId=arn, Plaintext=SECRET)["CiphertextBlob"]
    peer = spki(ec.generate_private_key(ec.SECP256R1()))
    derive = {"KeyId": agreement, "KeyAgreementAlgorithm": "ECDH", "PublicKey": peer}
    for call, arguments in (
        (client.decrypt, {"CiphertextBlob": blob}),
        (client.generate_data_key, {"KeyId": arn, "KeySpec": "AES_256"}),
        (client.generate_random, {"NumberOfBytes": 8}),
        (client.generate_data_key_pair, {"KeyId": arn, "KeyPairSpec": "ECC_NIST_P256"}),
        (client.derive_shared_secret, derive),
    ):
        assert "CiphertextForRecipient" in call(**arguments, Recipient=recipient)
        kind = refusal(call, **arguments, Recipient=recipient | change)
        assert kind == "ValidationException"


# Grants


def grant(double: KmsDouble, arn: str, grantee: Principal, **more: object) -> dict[str, Any]:
    arguments = {"KeyId": arn, "GranteePrincipal": grantee.arn, "Operations": ["Decrypt"]}
    made: dict[str, Any] = double.client(ADMIN).create_grant(**(arguments | more))
    return made


def sealed(double: KmsDouble, arn: str, **context: str) -> dict[str, Any]:
    made = double.client(ADMIN).encrypt(KeyId=arn, Plaintext=SECRET, EncryptionContext=context)
    return {"CiphertextBlob": made["CiphertextBlob"], "EncryptionContext": context, "KeyId": arn}


def test_grants_allow_until_they_are_revoked(double: KmsDouble) -> None:
    arn, client = new_key(double), double.client(ENCLAVE)
    blob = sealed(double, arn)
    assert refusal(client.decrypt, **blob) == "AccessDeniedException"
    made = grant(double, arn, ENCLAVE, Name="once")
    assert client.decrypt(**blob)["Plaintext"] == SECRET
    assert client.decrypt(**blob, GrantTokens=[made["GrantToken"]])["Plaintext"] == SECRET
    assert refusal(double.client(OUTSIDER).decrypt, **blob) == "AccessDeniedException"
    assert refusal(client.encrypt, KeyId=arn, Plaintext=b"x") == "AccessDeniedException"
    admin = double.client(ADMIN)
    (shown,) = admin.list_grants(KeyId=arn)["Grants"]
    assert (shown["GrantId"], shown["Name"]) == (made["GrantId"], "once")
    assert "GrantToken" not in shown
    assert refusal(admin.revoke_grant, KeyId=arn, GrantId="0" * 64) == "NotFoundException"
    admin.revoke_grant(KeyId=arn, GrantId=made["GrantId"])
    assert refusal(client.decrypt, **blob) == "AccessDeniedException"
    assert admin.list_grants(KeyId=arn)["Grants"] == []


@pytest.mark.parametrize(
    ("constraint", "passing", "failing"),
    [
        ({"EncryptionContextEquals": CONTEXT}, CONTEXT, CONTEXT | {"more": "x"}),
        ({"EncryptionContextSubset": CONTEXT}, CONTEXT | {"more": "x"}, {"tenant": "a"}),
        ({"EncryptionContextSubset": CONTEXT}, CONTEXT, CONTEXT | {"tenant": "A"}),
        ({"EncryptionContextEquals": CONTEXT}, CONTEXT, {}),
    ],
)
def test_grant_constraints(
    double: KmsDouble,
    constraint: dict[str, Any],
    passing: dict[str, str],
    failing: dict[str, str],
) -> None:
    arn, client = new_key(double), double.client(ENCLAVE)
    grant(double, arn, ENCLAVE, Constraints=constraint)
    assert client.decrypt(**sealed(double, arn, **passing))["Plaintext"] == SECRET
    kind = refusal(client.decrypt, **sealed(double, arn, **failing))
    assert kind == "AccessDeniedException"


def test_explicit_deny_wins_over_a_grant(double: KmsDouble) -> None:
    arn, admin = new_key(double), double.client(ADMIN)
    blob = sealed(double, arn)
    grant(double, arn, ENCLAVE)
    policy = json.loads(admin.get_key_policy(KeyId=arn)["Policy"])
    unattested = {"StringNotEquals": {"kms:RecipientAttestation:PCR0": "ab" * 48}}
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "kms:Decrypt",
        "Resource": "*",
        "Condition": unattested,
    }
    policy["Statement"].append(deny)
    admin.put_key_policy(KeyId=arn, Policy=json.dumps(policy))
    assert refusal(double.client(ENCLAVE).decrypt, **blob) == "AccessDeniedException"


def test_who_may_retire(double: KmsDouble) -> None:
    arn = new_key(double)
    made = grant(double, arn, ENCLAVE, RetiringPrincipal=OUTSIDER.arn)
    named = {"KeyId": arn, "GrantId": made["GrantId"]}
    for other in (SEALER, ENCLAVE):
        assert refusal(double.client(other).retire_grant, **named) == "AccessDeniedException"
    double.client(OUTSIDER).retire_grant(**named)
    own = grant(double, arn, ENCLAVE, Operations=["Decrypt", "RetireGrant"])
    double.client(ENCLAVE).retire_grant(GrantToken=own["GrantToken"])
    assert double.client(ADMIN).list_grants(KeyId=arn)["Grants"] == []


def test_a_grantee_passes_on_no_more_than_it_has(double: KmsDouble) -> None:
    arn, client = new_key(double), double.client(ENCLAVE)
    only = {"EncryptionContextEquals": CONTEXT}
    grant(double, arn, ENCLAVE, Operations=["Decrypt", "CreateGrant"], Constraints=only)
    child = {"KeyId": arn, "GranteePrincipal": OUTSIDER.arn, "Operations": ["Decrypt"]}
    assert refusal(client.create_grant, **child) == "AccessDeniedException"
    wider = child | {"Operations": ["Encrypt"], "Constraints": only}
    assert refusal(client.create_grant, **wider) == "AccessDeniedException"
    client.create_grant(**child, Constraints=only)
    blob = sealed(double, arn, **CONTEXT)
    assert double.client(OUTSIDER).decrypt(**blob)["Plaintext"] == SECRET


def test_grants_need_the_permission(double: KmsDouble) -> None:
    arn = new_key(double)
    arguments = {"KeyId": arn, "GranteePrincipal": ENCLAVE.arn, "Operations": ["Decrypt"]}
    assert refusal(double.client(OUTSIDER).create_grant, **arguments) == "AccessDeniedException"
    odd = arguments | {"Operations": ["Sign"]}
    assert refusal(double.client(ADMIN).create_grant, **odd) == "ValidationException"


# Aliases


def test_aliases(double: KmsDouble) -> None:
    client = double.client(ADMIN)
    first, second = new_key(double), new_key(double)
    client.create_alias(AliasName="alias/data", TargetKeyId=first)
    made = client.encrypt(KeyId="alias/data", Plaintext=SECRET)
    assert made["KeyId"] == first
    alias = first.rpartition(":")[0] + ":alias/data"
    opened = client.decrypt(KeyId=alias, CiphertextBlob=made["CiphertextBlob"])
    assert (opened["KeyId"], opened["Plaintext"]) == (first, SECRET)
    kind = refusal(client.create_alias, AliasName="alias/data", TargetKeyId=second)
    assert kind == "AlreadyExistsException"
    client.update_alias(AliasName="alias/data", TargetKeyId=second)
    wrong = {"KeyId": "alias/data", "CiphertextBlob": made["CiphertextBlob"]}
    assert refusal(client.decrypt, **wrong) == "IncorrectKeyException"
    (shown,) = client.list_aliases(KeyId=second)["Aliases"]
    assert (shown["AliasName"], shown["TargetKeyId"]) == ("alias/data", second.rpartition("/")[2])
    assert refusal(client.get_key_policy, KeyId="alias/data") == "NotFoundException"
    for name in ("alias/aws/s3", "data", "alias/", "alias/a b"):
        arguments = {"AliasName": name, "TargetKeyId": first}
        kind = refusal(client.create_alias, **arguments)
        assert kind in {
            "NotAuthorizedException",
            "InvalidAliasNameException",
            "ValidationException",
        }
    client.delete_alias(AliasName="alias/data")
    assert refusal(client.describe_key, KeyId="alias/data") == "NotFoundException"


def test_aliases_are_by_policy(double: KmsDouble) -> None:
    arn = new_key(double)
    double.client(ADMIN).create_alias(AliasName="alias/theirs", TargetKeyId=arn)
    other = double.client(OUTSIDER)
    taken = {"AliasName": "alias/mine", "TargetKeyId": arn}
    assert refusal(other.create_alias, **taken) == "AccessDeniedException"
    assert refusal(other.delete_alias, AliasName="alias/theirs") == "NotFoundException"
    assert other.list_aliases()["Aliases"] == []


def only(principal: Principal, *more: dict[str, Any]) -> str:
    """The policy of a key that one principal does everything with."""
    own = {"Effect": "Allow", "Principal": {"AWS": principal.arn}, "Action": "kms:*"}
    statements = [item | {"Resource": "*"} for item in (own, *more)]
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def test_an_alias_is_moved_by_whom_both_keys_allow(double: KmsDouble) -> None:
    theirs = new_key(double, Policy=only(ADMIN))
    double.client(ADMIN).create_alias(AliasName="alias/moved", TargetKeyId=theirs)
    sealer = double.client(SEALER)
    own = sealer.create_key(Policy=only(SEALER))["KeyMetadata"]["Arn"]
    moved = {"AliasName": "alias/moved", "TargetKeyId": own}
    assert refusal(sealer.update_alias, **moved) == "AccessDeniedException"
    assert refusal(sealer.delete_alias, AliasName="alias/moved") == "AccessDeniedException"
    assert refusal(double.client(ADMIN).update_alias, **moved) == "AccessDeniedException"
    described = double.client(ADMIN).describe_key(KeyId="alias/moved")["KeyMetadata"]
    assert described["Arn"] == theirs


def test_an_alias_names_keys_of_its_own_account(double: KmsDouble) -> None:
    guest = {"Effect": "Allow", "Principal": {"AWS": OUTSIDER.arn}, "Action": "kms:CreateAlias"}
    arn = new_key(double, Policy=only(ADMIN, guest))
    foreign = {"AliasName": "alias/foreign", "TargetKeyId": arn}
    assert refusal(double.client(OUTSIDER).create_alias, **foreign) == "NotFoundException"


# States and rotation


def test_disabled_keys_and_keys_pending_deletion_are_not_used(double: KmsDouble) -> None:
    client, arn = double.client(ADMIN), new_key(double)
    blob = sealed(double, arn)
    client.disable_key(KeyId=arn)
    uses = [
        (client.decrypt, blob),
        (client.encrypt, {"KeyId": arn, "Plaintext": b"x"}),
        (client.generate_data_key, {"KeyId": arn, "KeySpec": "AES_256"}),
        (client.rotate_key_on_demand, {"KeyId": arn}),
    ]
    for call, arguments in uses:
        assert refusal(call, **arguments) == "DisabledException"
    assert client.describe_key(KeyId=arn)["KeyMetadata"]["KeyState"] == "Disabled"
    assert refusal(client.cancel_key_deletion, KeyId=arn) == "KMSInvalidStateException"
    client.enable_key(KeyId=arn)
    assert client.decrypt(**blob)["Plaintext"] == SECRET
    planned = client.schedule_key_deletion(KeyId=arn, PendingWindowInDays=7)
    assert planned["KeyState"] == "PendingDeletion"
    for call, arguments in [*uses, (client.enable_key, {"KeyId": arn})]:
        assert refusal(call, **arguments) == "KMSInvalidStateException"
    assert client.describe_key(KeyId=arn)["KeyMetadata"]["DeletionDate"] == planned["DeletionDate"]
    client.cancel_key_deletion(KeyId=arn)
    client.enable_key(KeyId=arn)
    assert client.decrypt(**blob)["Plaintext"] == SECRET


def test_states_do_not_tell_strangers_anything(double: KmsDouble) -> None:
    arn = new_key(double)
    blob = sealed(double, arn)
    double.client(ADMIN).disable_key(KeyId=arn)
    assert refusal(double.client(OUTSIDER).decrypt, **blob) == "AccessDeniedException"


def test_rotation_keeps_old_ciphertexts_open(double: KmsDouble) -> None:
    client, arn = double.client(ADMIN), new_key(double)
    blobs = [sealed(double, arn)]
    assert client.get_key_rotation_status(KeyId=arn)["KeyRotationEnabled"] is False
    client.enable_key_rotation(KeyId=arn, RotationPeriodInDays=90)
    status = client.get_key_rotation_status(KeyId=arn)
    assert (status["KeyRotationEnabled"], status["RotationPeriodInDays"]) == (True, 90)
    for _ in range(2):
        client.rotate_key_on_demand(KeyId=arn)
        blobs.append(sealed(double, arn))
    assert [client.decrypt(**blob)["Plaintext"] for blob in blobs] == [SECRET] * 3
    relabelled = bytearray(blobs[0]["CiphertextBlob"])
    relabelled[39] = 2  # claims the newest material
    wrong = blobs[0] | {"CiphertextBlob": bytes(relabelled)}
    assert refusal(client.decrypt, **wrong) == "InvalidCiphertextException"
    client.disable_key_rotation(KeyId=arn)
    assert client.get_key_rotation_status(KeyId=arn)["KeyRotationEnabled"] is False


def test_tags_and_description(double: KmsDouble) -> None:
    client = double.client(ADMIN)
    arn = new_key(double, Tags=[{"TagKey": "a", "TagValue": "1"}], Description="old")
    client.tag_resource(KeyId=arn, Tags=[{"TagKey": "b", "TagValue": "2"}])
    client.untag_resource(KeyId=arn, TagKeys=["a"])
    assert client.list_resource_tags(KeyId=arn)["Tags"] == [{"TagKey": "b", "TagValue": "2"}]
    client.update_key_description(KeyId=arn, Description="new")
    assert client.describe_key(KeyId=arn)["KeyMetadata"]["Description"] == "new"


# What lasts


def test_everything_outlives_a_killed_process(tmp_path: Path, chain: nitro_pki.Chain) -> None:
    def running() -> KmsDouble:
        return KmsDouble(tmp_path, roots=chain.roots, principals=PRINCIPALS, mode="process")

    with running() as double:
        client, arn = double.client(ADMIN), new_key(double)
        agreement = new_key(double, KeySpec="ECC_NIST_P384", KeyUsage="KEY_AGREEMENT")
        public = client.get_public_key(KeyId=agreement)["PublicKey"]
        old = sealed(double, arn, **CONTEXT)
        client.rotate_key_on_demand(KeyId=arn)
        new = sealed(double, arn, **CONTEXT)
        client.create_alias(AliasName="alias/kept", TargetKeyId=arn)
        made = grant(double, arn, ENCLAVE)
        policy = client.get_key_policy(KeyId=arn)["Policy"].replace("Enable", "Kept")
        client.put_key_policy(KeyId=arn, Policy=policy)
        other = new_key(double)
        client.disable_key(KeyId=other)
        double.kill()
    state = tmp_path / "state.json"
    assert state.stat().st_mode & 0o777 == 0o600
    with running() as double:
        client = double.client(ADMIN)
        assert [client.decrypt(**blob)["Plaintext"] for blob in (old, new)] == [SECRET] * 2
        assert client.describe_key(KeyId="alias/kept")["KeyMetadata"]["Arn"] == arn
        assert client.get_public_key(KeyId=agreement)["PublicKey"] == public
        assert client.get_key_policy(KeyId=arn)["Policy"] == policy
        assert client.list_grants(KeyId=arn)["Grants"][0]["GrantId"] == made["GrantId"]
        assert double.client(ENCLAVE).decrypt(**old)["Plaintext"] == SECRET
        assert refusal(client.encrypt, KeyId=other, Plaintext=b"x") == "DisabledException"


@pytest.mark.parametrize("content", ["", "{}", '{"version": 2}', '{"version": 2, "keys": [{}]}'])
def test_a_state_file_that_is_not_the_doubles(
    tmp_path: Path, chain: nitro_pki.Chain, content: str
) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ValueError):  # noqa: PT011 - json's message, or the double's
        KmsDouble(tmp_path, roots=chain.roots, principals=PRINCIPALS).start()
    assert (tmp_path / "state.json").read_text() == content


# Faults


@pytest.fixture
def faulty(double: KmsDouble) -> Iterator[KmsDouble]:
    yield double
    double.inject()


def test_faults_that_take_the_place_of_answers(faulty: KmsDouble) -> None:
    client = faulty.client(ADMIN)
    faulty.inject("throttle*2", "error=503*1", "disconnect*1@ListAliases")
    for _ in range(2):
        assert refusal(client.list_keys) == "ThrottlingException"
    with pytest.raises(ClientError) as caught:
        client.list_keys()
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert client.list_keys()["Truncated"] is False
    with pytest.raises((HTTPClientError, EndpointConnectionError)):
        client.list_aliases()
    assert client.list_aliases()["Truncated"] is False


def test_slow_answers(faulty: KmsDouble) -> None:
    client = faulty.client(ADMIN)
    client.list_keys()
    faulty.inject("slow=0.4*1")
    started = time.monotonic()
    client.list_keys()
    assert time.monotonic() - started >= 0.4
    client.list_keys()


def test_stale_documents(
    faulty: KmsDouble, chain: nitro_pki.Chain, rsa_key: rsa.RSAPrivateKey
) -> None:
    client = faulty.client(ADMIN)
    old = nitro_pki.document(chain, timestamp=now_ms() - 600_000, public_key=spki(rsa_key))
    recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": old}
    assert refusal(client.generate_random, NumberOfBytes=8, Recipient=recipient)
    faulty.inject("stale-documents=3600")
    assert client.generate_random(NumberOfBytes=8, Recipient=recipient)["CiphertextForRecipient"]
    faulty.inject("stale-documents=1")
    assert refusal(client.generate_random, NumberOfBytes=8, Recipient=recipient)


def test_answers_that_aws_would_not_give(
    faulty: KmsDouble, rsa_key: rsa.RSAPrivateKey, recipient: dict[str, Any]
) -> None:
    client, arn = faulty.client(ADMIN), new_key(faulty)
    arguments = sealed(faulty, arn) | {"Recipient": recipient}

    def answer(fault: str) -> dict[str, Any]:
        faulty.inject(f"{fault}*1")
        made: dict[str, Any] = client.decrypt(**arguments)
        return made

    leaked = answer("plaintext-leak")
    assert leaked["Plaintext"] == open_enveloped(leaked["CiphertextForRecipient"], rsa_key)
    alone = answer("plaintext-only")
    assert (alone["Plaintext"], "CiphertextForRecipient" in alone) == (SECRET, False)
    forged = open_enveloped(answer("forged-envelope")["CiphertextForRecipient"], rsa_key)
    assert (len(forged), forged == SECRET) == (len(SECRET), False)
    tampered = open_enveloped(answer("tampered-envelope")["CiphertextForRecipient"], rsa_key)
    assert tampered == bytes([SECRET[0] ^ 1]) + SECRET[1:]
    assert answer("wrong-key-id")["KeyId"] != arn
    again = client.decrypt(**arguments)
    assert again["KeyId"] == arn
    assert open_enveloped(again["CiphertextForRecipient"], rsa_key) == SECRET


@pytest.mark.parametrize("text", ["", "x", "throttle*0", "throttle*", "slow=-1", "slow=x", "a\nb"])
def test_faults_that_are_not_understood(faulty: KmsDouble, text: str) -> None:
    if text:
        with pytest.raises(ValueError, match="fault"):
            faulty.inject(text)
    (faulty.directory / "faults").write_text("misspelt\n")
    with pytest.raises(ClientError) as caught:
        faulty.client(ADMIN).list_keys()
    assert "not a fault: 'misspelt'" in caught.value.response["Error"]["Message"]


def test_faults_are_in_the_audit_trail(faulty: KmsDouble) -> None:
    faulty.inject("throttle*1")
    assert refusal(faulty.client(ADMIN).list_keys) == "ThrottlingException"
    assert faulty.audit.events()[-1]["reason"] == "throttle"


def test_faults_from_the_command_line(tmp_path: Path, chain: nitro_pki.Chain) -> None:
    with KmsDouble(
        tmp_path,
        roots=chain.roots,
        principals=PRINCIPALS,
        mode="process",
        faults=["throttle*1@ListKeys"],
    ) as double:
        assert refusal(double.client(ADMIN).list_keys) == "ThrottlingException"
        assert double.client(ADMIN).list_keys()["Keys"] == []
