"""Signatures of images that are not signatures at all: reported, never an error of the reader."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from casemate.attestation.eif_signature import EifSignature, judge_signature
from tests.support import eif_builder as eb
from tests.support.nitro_pki import NOW, cbor, utc

PCR0 = b"\x10" * 48
SIGNER = eb.Signer()
NOT_THIS = "the signature is not this certificate's over this image's PCR0"


def judged(pem: bytes, cose: bytes) -> EifSignature:
    return judge_signature(cbor([eb.entry(pem, cose)]), PCR0, NOW)


def pem_of(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "image signer")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(utc(NOW) - dt.timedelta(days=1))
        .not_valid_after(utc(NOW) + dt.timedelta(days=1))
        .sign(SIGNER.key, SIGNER.hash)  # type: ignore[arg-type]
        .public_bytes(Encoding.PEM)
    )


def test_a_good_signature_is_taken() -> None:
    assert judged(SIGNER.pem, SIGNER.cose(PCR0)).holds


@pytest.mark.parametrize(
    "key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())]
)
def test_keys_that_sign_no_image(
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
) -> None:
    found = judged(pem_of(key), SIGNER.cose(PCR0))
    assert (found.holds, found.problems) == (False, (NOT_THIS,))


@pytest.mark.parametrize(
    "cose",
    [b"\xff", cbor({}), cbor([]), cbor(b""), cbor([b"", {}, b""]), cbor([b"", {}, b"", b"", b""])],
)
def test_what_is_no_cose_signature(cose: bytes) -> None:
    found = judged(SIGNER.pem, cose)
    assert (found.holds, found.problems) == (False, (NOT_THIS,))
