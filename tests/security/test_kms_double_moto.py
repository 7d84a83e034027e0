"""What the KMS double leaves to moto: under the key's policy, and out of reach of its keys."""

from __future__ import annotations

import dataclasses
import http.client
import json
import ssl
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from moto.kms.models import KmsBackend

from casemate_devkit.kms import KmsDouble
from casemate_devkit.kms.errors import REASON_HEADER
from casemate_devkit.kms.moto_operations import _CHANGING, _READING
from casemate_devkit.kms.parameters import _service_model
from casemate_devkit.kms.server import OBJECT_MAX
from tests.support.key_policies import ADMIN, CLINIC, ENCLAVE, OUTSIDER, PRINCIPALS, SEALER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casemate_devkit.kms import Principal

REGION = "eu-central-1"
SIGNING = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}
MACS = {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"}
ALGORITHM = {"SigningAlgorithm": "ECDSA_SHA_256"}


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KmsDouble]:
    directory = tmp_path_factory.mktemp("kms")
    with KmsDouble(directory, roots=frozenset({bytes(32)}), principals=PRINCIPALS) as running:
        yield running


def refusal(call: Callable[..., object], **arguments: object) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    assert json.loads(response["ResponseMetadata"]["HTTPHeaders"][REASON_HEADER])["code"]
    return str(response["Error"]["Code"])


def new_key(double: KmsDouble, signer: Principal, action: object, **arguments: object) -> str:
    """A key that ADMIN manages and ``signer`` may do ``action`` with."""
    manage = [f"kms:{verb}*" for verb in ("Create", "Describe", "Disable", "Get", "List", "Put")]
    statements = [
        {"Effect": "Allow", "Principal": {"AWS": who.arn}, "Action": what, "Resource": "*"}
        for who, what in ((ADMIN, manage), (signer, action))
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    made = double.client(ADMIN).create_key(Policy=policy, **arguments)
    return str(made["KeyMetadata"]["Arn"])


def test_moto_is_what_keeps_the_keys(double: KmsDouble) -> None:
    tags = [{"TagKey": "a", "TagValue": "b"}]
    client = double.client(ADMIN)
    told = client.create_key(Tags=tags, Description="kept")["KeyMetadata"]
    client.create_alias(AliasName="alias/kept", TargetKeyId=told["KeyId"])
    server = double._server
    assert server is not None
    backend = server.service.keys.backend(CLINIC, REGION)
    assert isinstance(backend, KmsBackend)
    key = backend.keys[told["KeyId"]]
    assert (key.arn, key.description) == (told["Arn"], "kept")
    assert backend.get_key_id_from_alias("alias/kept") == key.id
    assert backend.list_resource_tags(key.id)["Tags"] == tags
    changed = key.policy.replace("Enable", "Changed")
    backend.put_key_policy(key.id, changed)
    assert client.get_key_policy(KeyId=key.id)["Policy"] == changed
    backend.disable_key(key.id)
    assert refusal(client.encrypt, KeyId=key.id, Plaintext=b"x") == "DisabledException"


# KMS operations


def test_signatures_are_for_whom_the_policy_names(double: KmsDouble) -> None:
    actions = ["kms:Sign", "kms:Verify", "kms:GetPublicKey"]
    arn = new_key(double, SEALER, actions, **SIGNING)
    message = {"KeyId": arn, "Message": b"text", **ALGORITHM}
    sealer = double.client(SEALER)
    signature = sealer.sign(**message)["Signature"]
    assert sealer.verify(**message, Signature=signature)["SignatureValid"] is True
    public = load_der_public_key(sealer.get_public_key(KeyId=arn)["PublicKey"])
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature, b"text", ec.ECDSA(hashes.SHA256()))
    for principal in (ADMIN, ENCLAVE, OUTSIDER):
        client = double.client(principal)
        assert refusal(client.sign, **message) == "AccessDeniedException"
        kind = refusal(client.verify, **message, Signature=signature)
        assert kind == "AccessDeniedException"
    told = double.client(ADMIN).describe_key(KeyId=arn)["KeyMetadata"]
    assert told["SigningAlgorithms"] == ["ECDSA_SHA_256"]
    assert "EncryptionAlgorithms" not in told


def test_another_account_signs_with_the_keys_account(double: KmsDouble) -> None:
    arn = new_key(double, ENCLAVE, "kms:Sign", **SIGNING)
    message = {"Message": b"text", **ALGORITHM}
    assert double.client(ENCLAVE).sign(KeyId=arn, **message)["KeyId"] == arn
    double.client(ADMIN).create_alias(AliasName="alias/signs", TargetKeyId=arn)
    alias = arn.partition(":key/")[0] + ":alias/signs"
    assert double.client(ENCLAVE).sign(KeyId=alias, **message)["KeyId"] == arn
    assert refusal(double.client(ENCLAVE).sign, KeyId="alias/signs", **message) == (
        "NotFoundException"
    )
    double.client(ADMIN).disable_key(KeyId=arn)
    assert refusal(double.client(ENCLAVE).sign, KeyId=arn, **message) == "DisabledException"


def test_grants_let_sign_what_the_key_can(double: KmsDouble) -> None:
    arn = new_key(double, SEALER, "kms:Sign", **SIGNING)
    client = double.client(ADMIN)
    given = {"KeyId": arn, "GranteePrincipal": OUTSIDER.arn}
    assert refusal(client.create_grant, **given, Operations=["Decrypt"]) == "ValidationException"
    made = client.create_grant(**given, Operations=["Sign"], RetiringPrincipal=OUTSIDER.arn)
    assert double.client(OUTSIDER).sign(KeyId=arn, Message=b"text", **ALGORITHM)["Signature"]
    (listed,) = client.list_retirable_grants(RetiringPrincipal=OUTSIDER.arn)["Grants"]
    assert (listed["GrantId"], listed["KeyId"]) == (made["GrantId"], arn)
    assert made["GrantToken"] not in str(listed)
    foreign = double.client(OUTSIDER).list_retirable_grants(RetiringPrincipal=OUTSIDER.arn)
    assert foreign["Grants"] == []


def test_macs(double: KmsDouble) -> None:
    arn = new_key(double, SEALER, ["kms:GenerateMac", "kms:VerifyMac"], **MACS)
    message = {"KeyId": arn, "Message": b"text", "MacAlgorithm": "HMAC_SHA_256"}
    sealer = double.client(SEALER)
    mac = sealer.generate_mac(**message)["Mac"]
    assert sealer.verify_mac(**message, Mac=mac)["MacValid"] is True
    assert refusal(sealer.verify_mac, **message, Mac=b"x" * 32) == "KMSInvalidMacException"
    assert refusal(double.client(ENCLAVE).generate_mac, **message) == "AccessDeniedException"
    told = double.client(ADMIN).describe_key(KeyId=arn)["KeyMetadata"]
    assert told["MacAlgorithms"] == ["HMAC_SHA_256"]


def test_keys_for_signing_and_macs_encrypt_nothing(double: KmsDouble) -> None:
    for spec in (SIGNING, MACS):
        arn = new_key(double, SEALER, "kms:*", **spec)
        client = double.client(SEALER)
        data_key = {"KeyId": arn, "KeySpec": "AES_256"}
        assert refusal(client.generate_data_key, **data_key) == "InvalidKeyUsageException"
        kind = refusal(client.encrypt, KeyId=arn, Plaintext=b"x")
        assert kind == "InvalidKeyUsageException"


def test_rotations_are_listed(double: KmsDouble) -> None:
    client = double.client(ADMIN)
    arn = client.create_key()["KeyMetadata"]["Arn"]
    client.rotate_key_on_demand(KeyId=arn)
    assert len(client.list_key_rotations(KeyId=arn)["Rotations"]) == 1
    assert client.list_key_policies(KeyId=arn)["PolicyNames"] == ["default"]
    assert refusal(double.client(OUTSIDER).list_key_rotations, KeyId=arn) == "AccessDeniedException"


def test_nothing_that_releases_goes_to_moto() -> None:
    """By the API's own model: no Recipient, no ciphertext of a key, no plaintext in the answer."""
    told = {"Plaintext", "PrivateKeyPlaintext", "SharedSecret", "CiphertextForRecipient"}
    taken = {"Recipient", "CiphertextBlob", "Plaintext"}
    for operation in (*_READING, *_CHANGING, "ListRetirableGrants"):
        model = _service_model().operation_model(operation)
        assert not taken & model.input_shape.members.keys()
        assert model.output_shape is None or not told & model.output_shape.members.keys()


# Other services


def service(double: KmsDouble, name: str, principal: Principal = ADMIN) -> Any:  # noqa: ANN401 - boto3 is untyped
    keys = {
        "aws_access_key_id": principal.access_key_id,
        "aws_secret_access_key": principal.secret_access_key,
        "aws_session_token": principal.session_token,
    }
    return boto3.client(
        name,
        region_name=REGION,
        endpoint_url=double.endpoint(REGION),
        verify=str(double.ca_pem),
        # The first call of a service has moto import it: seconds, and minutes on a busy machine.
        config=Config(retries={"total_max_attempts": 1}, proxies={}, read_timeout=240),
        **keys,
    )


@pytest.mark.parametrize("size", [0, 5, 3 * 1024 * 1024])
def test_objects_come_back(double: KmsDouble, size: int) -> None:
    client, content = service(double, "s3"), (bytes(range(256)) * (size // 256 + 1))[:size]
    bucket = {"Bucket": f"sealed-{size}"}
    place = bucket | {"Key": "models/a b+c%2F/ä.sealed"}
    client.create_bucket(**bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    client.put_object(**place, Body=content, Metadata={"digest": "d"})
    got = client.get_object(**place)
    assert got["Body"].read() == content
    head = client.head_object(**place)
    assert (head["ContentLength"], head["Metadata"]) == (size, {"digest": "d"})
    (listed,) = client.list_objects_v2(**bucket, Prefix="models/a b+c")["Contents"]
    assert listed["Key"] == place["Key"]
    client.delete_object(**place)
    with pytest.raises(client.exceptions.NoSuchKey):
        client.get_object(**place)
    client.delete_bucket(**bucket)
    event = double.audit.events()[-1]
    assert event["decision"] == "passed on"
    assert (event["eventSource"], event["eventName"]) == (
        "s3.amazonaws.com",
        f"DELETE /{bucket['Bucket']}",
    )


@pytest.mark.slow
def test_other_services_know_the_account(double: KmsDouble) -> None:
    assert service(double, "sts").get_caller_identity()["Account"] == CLINIC
    role = service(double, "iam").create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]
    assert role["Arn"].startswith(f"arn:aws:iam::{CLINIC}:role/")
    parameters = service(double, "ssm")
    parameters.put_parameter(Name="p", Value="v", Type="String")
    assert parameters.get_parameter(Name="p")["Parameter"]["Value"] == "v"
    parameters = service(double, "ssm", OUTSIDER)
    with pytest.raises(parameters.exceptions.ParameterNotFound):
        parameters.get_parameter(Name="p")


@pytest.mark.parametrize("name", ["s3", "sts", "ssm"])
def test_other_services_need_a_signature(double: KmsDouble, name: str) -> None:
    call = {"s3": "list_buckets", "sts": "get_caller_identity", "ssm": "describe_parameters"}[name]
    for principal, kind in (
        (dataclasses.replace(ADMIN, secret_access_key="wrong"), "InvalidSignatureException"),
        (dataclasses.replace(ADMIN, access_key_id="AKIANOBODY"), "UnrecognizedClientException"),
        (dataclasses.replace(ENCLAVE, session_token="stolen"), "UnrecognizedClientException"),
    ):
        client = service(double, name, principal)
        with pytest.raises(ClientError) as caught:
            getattr(client, call)()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        assert kind in str(caught.value) or kind in str(caught.value.response)


def sent(
    double: KmsDouble, name: str, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, bytes]:
    """Send one signed request as it is."""
    aws = AWSRequest(method, f"https://localhost{path}", headers=headers, data=body)
    aws.headers["Host"] = headers.get("Host", "localhost")
    credentials = Credentials(ADMIN.access_key_id, ADMIN.secret_access_key)
    SigV4Auth(credentials, name, REGION).add_auth(aws)
    context = ssl.create_default_context(cafile=str(double.ca_pem))
    connection = http.client.HTTPSConnection("localhost", double.port, context=context, timeout=60)
    connection.request(method, path, body, dict(aws.headers.items()))
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_kms_is_not_reached_by_another_services_name(double: KmsDouble) -> None:
    arn = double.client(ADMIN).create_key()["KeyMetadata"]["Arn"]
    target = {
        "X-Amz-Target": "TrentService.DescribeKey",
        "Content-Type": "application/x-amz-json-1.1",
    }
    body = json.dumps({"KeyId": arn}).encode()
    for name in ("ssm", "secretsmanager", "tagging", "motoapi"):
        status, answer = sent(double, name, "POST", "/", target, body)
        assert status >= 400
        assert arn.encode() not in answer
    status, answer = sent(double, "s3", "GET", "/moto-api/data.json", {})
    assert b"kms" not in answer.lower()
    assert arn.encode() not in answer
    host = {"Host": f"kms.{REGION}.amazonaws.com"}
    assert sent(double, "s3", "GET", "/", host)[0] == 400


def test_the_account_is_the_signers(double: KmsDouble) -> None:
    form = {
        "X-Moto-Account-Id": "999999999999",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    body = b"Action=GetCallerIdentity&Version=2011-06-15"
    status, answer = sent(double, "sts", "POST", "/", form, body)
    assert status == 200
    assert f"<Account>{CLINIC}</Account>".encode() in answer


def test_changed_content_is_refused(double: KmsDouble) -> None:
    digest = {"X-Amz-Content-SHA256": "0" * 64}
    assert sent(double, "s3", "PUT", "/bucket/key", digest, b"text")[0] == 403
    unsigned = {"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}
    assert sent(double, "kms", "POST", "/", unsigned, b"{}")[0] == 400
    assert sent(double, "ssm", "POST", "/", unsigned, b"{}")[0] == 403


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (f"Content-Length: {OBJECT_MAX + 1}", b""),
        ("Transfer-Encoding: gzip", b""),
        ("Transfer-Encoding: chunked\r\nContent-Length: 1", b""),
        ("Transfer-Encoding: chunked", b"x\r\n"),
        ("Transfer-Encoding: chunked", b"fffffff\r\n"),
        ("Transfer-Encoding: chunked", b"1\r\nxy\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", b"0\r\n" + b"a: b\r\n" * 17),
    ],
)
def test_other_services_bodies_are_bounded(double: KmsDouble, head: str, body: bytes) -> None:
    scope = f"{ADMIN.access_key_id}/20260101/{REGION}/s3/aws4_request"
    signature = f"SignedHeaders=host, Signature={'0' * 64}"
    lines = f"Authorization: AWS4-HMAC-SHA256 Credential={scope}, {signature}\r\n{head}"
    context = ssl.create_default_context(cafile=str(double.ca_pem))
    connection = http.client.HTTPSConnection("localhost", double.port, context=context, timeout=60)
    connection.connect()
    request = f"PUT /b/k HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n".encode()
    connection.sock.sendall(request + body)
    assert connection.sock.recv(64).startswith(b"HTTP/1.1 413")
    connection.close()


def test_signing_keys_outlive_the_double(tmp_path: Path) -> None:
    def running() -> KmsDouble:
        return KmsDouble(tmp_path, roots=frozenset({bytes(32)}), principals=PRINCIPALS)

    message = {"Message": b"text", **ALGORITHM}
    with running() as double:
        arn = new_key(double, SEALER, ["kms:Sign", "kms:Verify"], **SIGNING)
        signature = double.client(SEALER).sign(KeyId=arn, **message)["Signature"]
    with running() as double:
        verified = double.client(SEALER).verify(KeyId=arn, **message, Signature=signature)
        assert verified["SignatureValid"] is True
