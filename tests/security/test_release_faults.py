"""Key release when KMS, or whoever plays it, errs or lies (A42 to A44, A48 to A50, A52).

The enclave's own client - the real botocore, over TLS - against the double with faults.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.attestation.configuration import KmsConfiguration
from casemate.envelope.header import parse_request_header
from casemate.envelope.opening import check_commitment
from casemate.envelope.sealing import DataKeySession
from casemate.errors import Code, EnvelopeError, KeyReleaseError
from casemate_devkit.kms import KmsDouble
from casemate_kms.client import AttestedKms
from tests.support import cms_builder as cms
from tests.support import nitro_pki
from tests.support.cms_builder import Envelope
from tests.support.key_policies import (
    ADMIN,
    CONTEXT,
    ENCLAVE,
    PRINCIPALS,
    SCOPE,
    SEALER,
    SECRET,
    good,
    registers,
    spki,
)
from tests.support.kms_bench import Bench, bench_for
from tests.support.kms_endpoint import DATA_KEY, DOCUMENT, HOST, Seen, b64, granted
from tests.support.ports import lasting_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REGION = "eu-central-1"


class Attester:
    """Documents of the release's registers; ``public_key`` replaces the enclave's own."""

    def __init__(self, chain: nitro_pki.Chain) -> None:
        self._chain = chain
        self.public_key: bytes | None = None

    def attest(
        self, *, public_key: bytes | None, user_data: bytes | None, nonce: bytes | None
    ) -> bytes:
        return nitro_pki.document(
            self._chain,
            timestamp=time.time_ns() // 1_000_000,
            pcrs=registers(),
            public_key=self.public_key or public_key,
            user_data=user_data,
            nonce=nonce,
        )


class Enclave:
    """The enclave's KMS client, pointed at a double; a key and a wrapped data key."""

    def __init__(self, double: KmsDouble, chain: nitro_pki.Chain) -> None:
        self.double = double
        self.attester = Attester(chain)
        configuration = KmsConfiguration("aws", (REGION,), (double.ca_der,))
        self.kms = AttestedKms(configuration, self.attester, self._dial)
        token = ENCLAVE.session_token
        self.kms.set_credentials(ENCLAVE.access_key_id, ENCLAVE.secret_access_key, token, None)
        made = double.client(ADMIN).create_key(Policy=json.dumps(good()))
        self.arn: str = made["KeyMetadata"]["Arn"]
        self.blob = self.wrapped(SECRET)

    def _dial(self, host: str, port: int) -> socket.socket:
        assert (host, port) == (f"kms.{REGION}.amazonaws.com", 443)
        return socket.create_connection(("127.0.0.1", self.double.port), timeout=60)

    def wrapped(self, plaintext: bytes) -> bytes:
        sealer = self.double.client(SEALER)
        answer = sealer.encrypt(KeyId=self.arn, Plaintext=plaintext, EncryptionContext=CONTEXT)
        blob: bytes = answer["CiphertextBlob"]
        return blob

    def release(self, blob: bytes | None = None, seconds: float = 60) -> bytes:
        return self.kms.decrypt(
            key_arn=self.arn,
            ciphertext_blob=blob or self.blob,
            context=CONTEXT,
            deadline=time.monotonic() + seconds,
        )

    def refused(self, seconds: float = 60) -> Code:
        with pytest.raises(KeyReleaseError) as caught:
            self.release(seconds=seconds)
        return caught.value.code


@pytest.fixture(scope="module")
def chain() -> nitro_pki.Chain:
    return nitro_pki.issue(nitro_pki.real_shape(), now=time.time_ns() // 1_000_000)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, chain: nitro_pki.Chain) -> Iterator[Enclave]:
    directory = tmp_path_factory.mktemp("kms")
    with KmsDouble(directory, roots=chain.roots, principals=PRINCIPALS) as double:
        enclave = Enclave(double, chain)
        yield enclave
        enclave.kms.close()


@pytest.fixture
def enclave(running: Enclave) -> Iterator[Enclave]:
    """Released before and after every test: a fault leaves nothing behind."""
    assert running.release() == SECRET
    yield running
    running.double.inject()
    running.attester.public_key = None
    assert running.release() == SECRET


def requests(enclave: Enclave) -> int:
    return sum(event.get("eventName") == "Decrypt" for event in enclave.double.audit.events())


def test_a42_plaintext_beside_or_instead_of_the_envelope(enclave: Enclave) -> None:
    for fault in ("plaintext-leak", "plaintext-only"):
        enclave.double.inject(fault)
        before = requests(enclave)
        assert enclave.refused() is Code.KEY_RELEASE_INVALID
        assert requests(enclave) == before + 1  # not asked for again


def test_the_answer_of_another_key(enclave: Enclave) -> None:
    enclave.double.inject("wrong-key-id")
    assert enclave.refused() is Code.KEY_RELEASE_INVALID


def weak_public_keys() -> list[bytes]:
    modern = rsa.generate_private_key(65537, 2048)
    cubed = rsa.RSAPublicNumbers(3, modern.public_key().public_numbers().n).public_key()
    return [
        b"x",
        spki(ec.generate_private_key(ec.SECP256R1())),
        spki(rsa.generate_private_key(65537, 1024)),
        cubed.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        spki(modern) + b"\0",
    ]


def test_a43_documents_with_weak_public_keys(enclave: Enclave) -> None:
    for public_key in weak_public_keys():
        enclave.attester.public_key = public_key
        assert enclave.refused() is Code.KEY_RELEASE_INVALID
        event = enclave.double.audit.events()[-1]
        assert "public_key" in event["reason"]


@pytest.mark.parametrize("algorithm", ["RSAES_OAEP_SHA_1", "RSAES_PKCS1_V1_5", "SM2PKE", ""])
def test_a44_other_key_encryption_algorithms(enclave: Enclave, algorithm: str) -> None:
    document = enclave.attester.attest(
        public_key=spki(rsa.generate_private_key(65537, 2048)), user_data=None, nonce=None
    )
    with pytest.raises(ClientError, match="ValidationException") as caught:
        enclave.double.client(ENCLAVE).decrypt(
            KeyId=enclave.arn,
            CiphertextBlob=enclave.blob,
            EncryptionContext=CONTEXT,
            Recipient={"KeyEncryptionAlgorithm": algorithm, "AttestationDocument": document},
        )
    assert "Plaintext" not in caught.value.response


def committed(enclave: Enclave) -> Callable[[bytes], bytes]:
    """What the enclave does with a released key before it opens anything (SPEC 5.4)."""
    now = time.time_ns() // 1_000_000
    session = DataKeySession.kms(
        key_arn=enclave.arn,
        ciphertext_blob=enclave.blob,
        data_key=SECRET,
        instance_id=bytes(16),
        audience=SCOPE,
        not_before=now,
        not_after=now + 60_000,
        caller=None,
    )
    sealed = session.seal(model="wdbc", version=None, digest=None, message=b"row")
    header = parse_request_header(sealed.header)
    return lambda data_key: check_commitment(header, data_key)


def test_a48_another_wrapped_key_under_the_same_kms_key(enclave: Enclave) -> None:
    check = committed(enclave)
    check(enclave.release())
    other = enclave.release(enclave.wrapped(bytes(32)))
    assert other == bytes(32)
    with pytest.raises(EnvelopeError) as caught:
        check(other)
    assert caught.value.code is Code.OPEN_FAILED
    with pytest.raises(KeyReleaseError) as refused:
        enclave.kms.decrypt(
            key_arn=enclave.arn,
            ciphertext_blob=enclave.blob,
            context=CONTEXT | {"casemate:purpose": "model"},
            deadline=time.monotonic() + 60,
        )
    assert refused.value.code is Code.KEY_RELEASE_DENIED


@pytest.mark.parametrize("fault", ["forged-envelope", "tampered-envelope"])
def test_a49_a50_forged_and_tampered_envelopes_open_and_are_not_used(
    enclave: Enclave, fault: str
) -> None:
    """CMS authenticates nothing: what opens is a key only after its commitment matched."""
    check = committed(enclave)
    enclave.double.inject(fault)
    key = enclave.release()
    assert (len(key), key == SECRET) == (32, False)
    with pytest.raises(EnvelopeError) as caught:
        check(key)
    assert caught.value.code is Code.OPEN_FAILED


PADDED = bytes(32)
A52: dict[str, dict[str, object]] = {
    "version 0": {"version": 0},
    "recipient version 0": {"recipient_version": 0},
    "issuerAndSerialNumber": {"recipient_tag": 0x30},
    "OAEP with SHA-1": {
        "transport_identifier": cms.oaep_identifier(cms.SHA1),
        "transport": cms.oaep(hashes.SHA1()),
    },
    "OAEP with SHA-1, labelled SHA-256": {"transport": cms.oaep(hashes.SHA1())},
    "PKCS #1 v1.5": {
        "transport_identifier": cms.value(0x30, cms.oid(cms.RSA), cms.NULL),
        "transport": PKCS1v15(),
    },
    "AES-128": {"content_cipher": cms.AES128_CBC, "cek_bytes": 16},
    "AES-256-GCM": {"content_cipher": cms.AES256_GCM},
    "two recipients": {"recipients": 2},
    "no recipient": {"recipients": 0},
    "wrong key identifier": {"key_identifier": bytes(32)},
    "short IV": {"iv": bytes(15)},
    "long IV": {"iv": bytes(17)},
    "ciphertext not of whole blocks": {"ciphertext": bytes(47)},
    "no ciphertext": {"ciphertext": b""},
    "pad of nothing": {"padded": PADDED[:-1] + b"\x00"},
    "pad longer than a block": {"padded": PADDED[:-1] + b"\x11"},
    "pad longer than the data": {"padded": PADDED[:-1] + b"\xff"},
    "trailing bytes": {"trailing": b"\x00"},
    "content that is no data": {"content_type": cms.ENVELOPED_DATA},
}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with bench_for(HOST) as made:
        yield made


@pytest.mark.parametrize("changes", A52.values(), ids=A52)
def test_a52_envelopes_that_aws_does_not_write(bench: Bench, changes: dict[str, object]) -> None:
    def answer(request: Seen) -> tuple[int, bytes]:
        public = request.document.removeprefix(DOCUMENT)[8:]
        envelope = Envelope(DATA_KEY, public).but(**changes).encode()
        return granted(CiphertextForRecipient=b64(envelope))(request)

    bench.kms.answers = [answer]
    assert bench.failing().code is Code.KEY_RELEASE_INVALID
    bench.kms.answers = [granted()]
    assert bench.decrypt() == DATA_KEY


def test_a52_truncated_envelopes(bench: Bench) -> None:
    for end in (0, 1, 2, 40, -4, -2, -1):

        def answer(request: Seen, end: int = end) -> tuple[int, bytes]:
            public = request.document.removeprefix(DOCUMENT)[8:]
            whole = Envelope(DATA_KEY, public).encode()
            return granted(CiphertextForRecipient=b64(whole[:end]))(request)

        bench.kms.answers = [answer]
        assert bench.failing().code is Code.KEY_RELEASE_INVALID


# Trouble on the way


@pytest.mark.parametrize("fault", ["throttle*2", "error*2", "error=503*1", "disconnect*1"])
def test_passing_trouble_is_tried_again(enclave: Enclave, fault: str) -> None:
    enclave.double.inject(fault)
    assert enclave.release() == SECRET


@pytest.mark.parametrize("fault", ["throttle", "error", "disconnect"])
def test_lasting_trouble_is_unavailable(enclave: Enclave, fault: str) -> None:
    enclave.double.inject(fault)
    assert enclave.refused() is Code.KEY_RELEASE_UNAVAILABLE


def test_a_slow_kms_is_given_up_in_time(enclave: Enclave) -> None:
    enclave.double.inject("slow=30*1")
    started = time.monotonic()
    assert enclave.refused(seconds=1) is Code.KEY_RELEASE_UNAVAILABLE
    assert time.monotonic() - started < 25


def test_killing_the_double_in_mid_release_ends_in_a_clean_retry(
    tmp_path: Path, chain: nitro_pki.Chain
) -> None:
    def start(port: int) -> KmsDouble:
        return KmsDouble(
            tmp_path, roots=chain.roots, principals=PRINCIPALS, mode="process", port=port
        ).start()

    double = start(lasting_port())
    enclave = Enclave(double, chain)
    try:
        assert enclave.release() == SECRET
        double.inject("slow=30")
        codes: list[Code] = []
        waiting = threading.Thread(target=lambda: codes.append(enclave.refused()))
        waiting.start()
        time.sleep(0.5)
        double.kill()
        waiting.join(timeout=60)
        assert codes == [Code.KEY_RELEASE_UNAVAILABLE]
        double.inject()
        double.stop()
        double = start(double.port)
        assert enclave.release() == SECRET
    finally:
        enclave.kms.close()
        double.stop()
