"""The signature section of an enclave image (SPEC 4.4): judged and reported, never trusted.

It says who signed PCR0. Whoever accepts PCR8 accepts every image that this signer ever signed, so
no policy of Casemate's takes it in place of PCR0, PCR1 and PCR2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from casemate import cbor

# By the key's curve: the one protected header, the hash, and the bytes of each half.
_SUITES: Final[dict[str, tuple[bytes, hashes.HashAlgorithm, int]]] = {
    "secp256r1": (bytes.fromhex("a10126"), hashes.SHA256(), 32),
    "secp384r1": (bytes.fromhex("a1013822"), hashes.SHA384(), 48),
    "secp521r1": (bytes.fromhex("a1013823"), hashes.SHA512(), 66),
}
_COSE_ITEMS: Final = 4


@dataclass(frozen=True, slots=True)
class EifSignature:
    """What the section says and what is wrong with it.

    ``certificate`` is DER, or None if there is none that can be read; times are in milliseconds.
    ``holds`` says that its key signed this very PCR0; ``problems`` are all reasons not to rely on
    it, an expired certificate included.
    """

    certificate: bytes | None = None
    subject: str = ""
    not_before: int = 0
    not_after: int = 0
    holds: bool = False
    problems: tuple[str, ...] = ()


def judge_signature(section: bytes, pcr0: bytes, now: int) -> EifSignature:
    """Judge the section's content against the measured ``pcr0``; ``now`` in milliseconds."""
    try:
        entries = cbor.decode_nsm(section)
        first = _entry(entries)
        pem, cose = bytes(first["signing_certificate"]), bytes(first["signature"])
    except (cbor.CborError, ValueError, TypeError):
        return EifSignature(problems=("the signature section cannot be read",))
    problems = ["more than one signature: only the first is looked at"] if entries[1:] else []
    try:
        certificate, *others = x509.load_pem_x509_certificates(pem)
        judged = _judge(certificate, cose, pcr0, now)
    except Exception:  # noqa: BLE001 - the parser reads lazily and its errors have no common base
        return EifSignature(problems=(*problems, "the signing certificate cannot be read"))
    if others:
        problems.append("more than one certificate: only the first is looked at")
    return replace(judged, problems=(*problems, *judged.problems))


def _entry(entries: cbor.Value) -> dict[str, cbor.Value]:
    if not isinstance(entries, list) or not entries:
        raise cbor.CborError("no signature")
    return cbor.fields(entries[0], {"signing_certificate": list, "signature": list})


def _judge(certificate: x509.Certificate, cose: bytes, pcr0: bytes, now: int) -> EifSignature:
    begin = int(certificate.not_valid_before_utc.timestamp()) * 1000
    end = int(certificate.not_valid_after_utc.timestamp()) * 1000
    holds = _signed(certificate, cose, pcr0)
    problems = [] if holds else ["the signature is not this certificate's over this image's PCR0"]
    if not begin <= now <= end:
        problems.append(
            "the certificate has expired" if now > end else "the certificate is not yet valid"
        )
    return EifSignature(
        certificate=certificate.public_bytes(Encoding.DER),
        subject=certificate.subject.rfc4514_string(),
        not_before=begin,
        not_after=end,
        holds=holds,
        problems=tuple(problems),
    )


def _signed(certificate: x509.Certificate, cose: bytes, pcr0: bytes) -> bool:
    """Whether the certificate's key signed PCR0.

    The payload is made from the PCR0 that was measured; the section's own has to equal it and is
    never parsed, so nothing in it can stand for another register or another value.
    """
    payload = cbor.encode({"register_index": 0, "register_value": list(pcr0)})
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _SUITES:
        return False
    protected, algorithm, half = _SUITES[key.curve.name]
    try:
        items = cbor.decode(cose)
    except cbor.CborError:
        return False
    if not isinstance(items, list) or len(items) != _COSE_ITEMS:
        return False
    signature = items[3]
    expected = [protected, {}, payload]
    if items[:3] != expected or type(signature) is not bytes or len(signature) != 2 * half:
        return False
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    signed = cbor.encode(["Signature1", protected, b"", payload])
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True
