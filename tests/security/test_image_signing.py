"""Images signed by a key that never leaves KMS, judged by the verifier and by two other readers.

THREATS: A55. The certificate is made as docs/guides/nitro.md makes it, with OpenSSL.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding

from casemate_devkit.eif.__main__ import main
from casemate_devkit.eif.build import measured
from casemate_devkit.eif.signing import KmsKey, SigningCode, SigningError, section
from casemate_devkit.kms import KmsDouble
from casemate_devkit.parties import Aws, principal
from tests.support import eif_builder as eb
from tests.support.other_eif import OtherEif
from tests.support.small_tree import make_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/nitro.md"
REGION = "eu-central-1"
ADMIN, SIGNER, OTHER = (
    principal("vendor", name) for name in ("user/admin", "role/image-signer", "role/other")
)
SUITES = {
    "ECC_NIST_P256": ("sha256", SHA256(), bytes.fromhex("a10126")),
    "ECC_NIST_P384": ("sha384", SHA384(), bytes.fromhex("a1013822")),
    "ECC_NIST_P521": ("sha512", SHA512(), bytes.fromhex("a1013823")),
}
PROFILE = 'form = "nitro-enclave"\narchitecture = "x86_64"\nkernel_arguments = "a"\nmodules = []\n'


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KmsDouble]:
    with KmsDouble(
        tmp_path_factory.mktemp("kms"),
        roots=frozenset({bytes(32)}),
        principals=(ADMIN, SIGNER, OTHER),
        regions=(REGION,),
    ) as running:
        yield running


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Bench:
    """One build's files, and the command that signs as ``SIGNER``."""

    def __init__(self, double: KmsDouble, folder: Path) -> None:
        self.double, self.folder, self.image = double, folder, folder / "casemate.eif"
        self.parts = make_parts(folder)
        (folder / "profile.toml").write_text(PROFILE)
        self.environment = Aws(double.endpoint(REGION), double.ca_pem).environment(SIGNER)

    def key(self, spec: str = "ECC_NIST_P384", usage: str = "SIGN_VERIFY") -> str:
        statements = [
            {"Effect": "Allow", "Principal": {"AWS": who.arn}, "Action": actions, "Resource": "*"}
            for who, actions in (
                (
                    ADMIN,
                    ["kms:DescribeKey", "kms:GetPublicKey", "kms:PutKeyPolicy", "kms:Disable*"],
                ),
                (SIGNER, ["kms:Sign", "kms:GetPublicKey"]),
            )
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        made = self.double.client(ADMIN).create_key(KeySpec=spec, KeyUsage=usage, Policy=policy)
        return str(made["KeyMetadata"]["Arn"])

    def certificate(self, key: str) -> Path:
        """For a key of which only KMS has the private half: OpenSSL, and an issuer made for it."""
        public = self.double.client(SIGNER).get_public_key(KeyId=key)["PublicKey"]
        (self.folder / "public.der").write_bytes(public)
        lines = [line for line in GUIDE.read_text().splitlines() if line.startswith("openssl ")]
        assert len(lines) == 3
        for line in lines:
            subprocess.run(line.split(), cwd=self.folder, check=True, capture_output=True)
        return self.folder / "signer.pem"

    def build(self, *signer: str, **changes: str) -> Done:
        """Run the command in this process, with the environment of ``SIGNER``."""
        command = [
            *("--tree", str(self.parts.tree), "--kernel", str(self.parts.kernel)),
            *("--profile", str(self.folder / "profile.toml"), "--output", str(self.image)),
        ]
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            for name, value in (self.environment | changes).items():
                patch.setenv(name, value)
            status = main([*command, *signer])
        return Done(status, out.getvalue(), err.getvalue())

    def sign(self, key: str, certificate: Path, **changes: str) -> Done:
        return self.build("--kms-signing-key", key, "--certificate", str(certificate), **changes)


@pytest.fixture
def bench(double: KmsDouble, tmp_path: Path) -> Bench:
    return Bench(double, tmp_path)


@pytest.mark.parametrize("spec", SUITES)
def test_a55_a_key_in_kms_signs_and_every_reader_agrees(bench: Bench, spec: str) -> None:
    plain = json.loads(bench.build().out)
    key = bench.key(spec)
    done = bench.sign(key, bench.certificate(key))
    assert (done.status, done.err) == (0, "")
    told = json.loads(done.out)
    assert told["problems"] == []
    assert [told[name] for name in ("pcr0", "pcr1", "pcr2")] == [
        plain[name] for name in ("pcr0", "pcr1", "pcr2")
    ]
    certificate = x509.load_pem_x509_certificate((bench.folder / "signer.pem").read_bytes())
    der = certificate.public_bytes(Encoding.DER)
    pcr8 = hashlib.sha384(bytes(48) + hashlib.sha384(der).digest()).hexdigest()
    image = measured(bench.image)
    assert image.signature is not None
    assert image.signature.holds
    assert told["pcr8"] == image.pcr8.hex() == pcr8  # type: ignore[union-attr]

    other = OtherEif.read(bench.image)
    assert [value.hex() for value in other.registers] == [
        *(told["pcr0"], told["pcr1"], told["pcr2"], told["pcr8"]),
    ]
    name, algorithm, protected = SUITES[spec]
    assert (other.certificate, other.protected) == (der, protected)
    r, s = (int.from_bytes(half, "big") for half in other.halves)
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(encode_dss_signature(r, s), other.signed, ec.ECDSA(algorithm))
    assert openssl_verifies(bench.folder, name, other.signed, encode_dss_signature(r, s))
    assert not openssl_verifies(
        bench.folder, name, other.signed[:-1] + b"\xff", encode_dss_signature(r, s)
    )


def openssl_verifies(folder: Path, digest: str, signed: bytes, signature: bytes) -> bool:
    (folder / "signed").write_bytes(signed)
    (folder / "signature").write_bytes(signature)
    line = f"openssl dgst -{digest} -verify public.pem -signature signature signed"
    return (
        subprocess.run(line.split(), cwd=folder, check=False, capture_output=True).returncode == 0
    )


def refused(done: Done, code: SigningCode, bench: Bench) -> str:
    """Refused for this reason, and what lay there before lies there still; returns the line."""
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"eif: {code}: ")
    assert done.err.count("\n") == 1
    assert bench.image.read_bytes() == b"earlier image"
    assert not list(bench.folder.glob(".casemate.eif*"))
    return done.err


def test_a55_what_kms_does_not_sign_leaves_no_image(bench: Bench) -> None:
    bench.image.write_bytes(b"earlier image")
    key = bench.key()
    certificate = bench.certificate(key)
    theirs = Aws(bench.double.endpoint(REGION), bench.double.ca_pem).environment(OTHER)
    line = refused(bench.sign(key, certificate, **theirs), SigningCode.KMS_REFUSED, bench)
    assert "AccessDeniedException" in line
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    refused(bench.sign(key, certificate, **wrong), SigningCode.KMS_REFUSED, bench)
    bench.double.client(ADMIN).disable_key(KeyId=key)
    line = refused(bench.sign(key, certificate), SigningCode.KEY_UNUSABLE, bench)
    assert "DisabledException" in line
    nobody = {"AWS_ENDPOINT_URL_KMS": "https://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
    refused(bench.sign(key, certificate, **nobody), SigningCode.KMS_UNAVAILABLE, bench)
    bench.double.inject("error=503*1@Sign")
    once = {"AWS_MAX_ATTEMPTS": "1", "AWS_RETRY_MODE": "standard"}
    refused(bench.sign(key, certificate, **once), SigningCode.KMS_UNAVAILABLE, bench)
    missing = key[:-12] + "000000000000"
    refused(bench.sign(missing, certificate), SigningCode.KEY_UNUSABLE, bench)
    refused(bench.sign("no-arn", certificate), SigningCode.KMS_UNAVAILABLE, bench)


@pytest.mark.parametrize(
    ("spec", "usage"),
    [
        ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"),
        ("HMAC_384", "GENERATE_VERIFY_MAC"),
        ("ECC_NIST_P384", "KEY_AGREEMENT"),
        ("RSA_2048", "SIGN_VERIFY"),
        ("ECC_NIST_P256", "SIGN_VERIFY"),
        ("ECC_SECG_P256K1", "SIGN_VERIFY"),
    ],
)
def test_a55_a_key_of_another_kind_is_refused(bench: Bench, spec: str, usage: str) -> None:
    bench.image.write_bytes(b"earlier image")
    certificate = bench.certificate(bench.key())
    refused(bench.sign(bench.key(spec, usage), certificate), SigningCode.KEY_UNUSABLE, bench)


def test_a55_a_certificate_of_another_key_is_refused(bench: Bench) -> None:
    bench.image.write_bytes(b"earlier image")
    certificate = bench.certificate(bench.key())
    refused(bench.sign(bench.key(), certificate), SigningCode.KEY_MISMATCH, bench)


def test_a55_certificates_that_do_not_do_are_refused(bench: Bench) -> None:
    bench.image.write_bytes(b"earlier image")
    key, path = bench.key(), bench.folder / "wrong.pem"
    one, other = eb.Signer(), eb.Signer()
    k1 = eb.Signer(curve=ec.SECP256K1())
    for content in (b"x", one.pem + other.pem, k1.pem):
        path.write_bytes(content)
        refused(bench.sign(key, path), SigningCode.CERTIFICATE_UNUSABLE, bench)


def test_a55_an_answer_that_is_no_signature_over_this_image_is_refused() -> None:
    """Whatever answers for KMS, nothing is written that does not verify."""
    signer = eb.Signer()

    class Lying:
        def __init__(self, answer: bytes) -> None:
            self._answer = answer

        def sign(self, **_: object) -> dict[str, bytes]:
            return {"Signature": self._answer}

    elsewhere = signer.key.sign(b"another message", ec.ECDSA(SHA384()))
    for answer in (b"", b"\x30\x00", elsewhere, elsewhere + b"\x00"):
        with pytest.raises(SigningError) as caught:
            section(KmsKey(Lying(answer), "arn"), signer.pem, bytes(48))
        assert caught.value.code is SigningCode.KEY_MISMATCH
