"""The certificate chain of an attestation document: step 7 of SPEC 3.8.

No path is built and nothing is fetched: the document names one chain, root first, and either each
certificate in it was issued by the one before or the document is refused. AWS runs this PKI without
revocation; the certificates' lifetimes of hours take its place, which is why every one of them is
judged at the verifier's time, also where the chain was seen before.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import SignatureAlgorithmOID

from casemate.attestation.chain_cache import CheckedChain, Lifetime
from casemate.errors import Code, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from casemate.attestation.chain_cache import ChainCache

T = TypeVar("T", bound=x509.ExtensionType)

_WHOLE_BYTES: Final = b"\0"  # unused bits of a string of bits
_UNDERSTOOD: Final = (x509.BasicConstraints, x509.KeyUsage)


def verify_chain(
    certificates: Sequence[bytes], now: int, cache: ChainCache | None = None
) -> ec.EllipticCurvePublicKey:
    """Return the leaf's public key, a P-384 key, if every check holds at ``now`` (milliseconds).

    ``certificates`` are DER, root first, leaf last. The caller has compared the root's bytes with
    its trust anchors, so the root's signature over itself would add nothing and is not looked at.
    ``cache`` may know what does not depend on the time. Raises EvidenceError (EVIDENCE_CHAIN) only.
    """
    known = cache.get(certificates) if cache is not None else None
    if known is not None:
        _check_lifetimes(known, now)
        return known.leaf_key
    try:
        checked = _check_chain(certificates, now)
    except EvidenceError:
        raise
    except Exception:  # noqa: BLE001 - the parser reads lazily and its errors have no common base
        raise _refused("a certificate is malformed") from None
    if cache is not None:
        cache.put(certificates, checked)
    return checked.leaf_key


def _check_chain(certificates: Sequence[bytes], now: int) -> CheckedChain:
    """Everything, the signatures last: they cost nearly all of it."""
    if len(set(certificates)) < len(certificates):
        raise _refused("a certificate occurs twice")
    chain = [_parse(der) for der in certificates]
    last = len(chain) - 1
    keys = []
    for depth, certificate in enumerate(chain):
        name = _name(depth, last)
        keys.append(_check_form(certificate, name))
        if depth < last:
            _check_issuer(certificate, last - 1 - depth, name)
    _check_leaf(chain[last])
    checked = CheckedChain(tuple(_lifetime(certificate) for certificate in chain), keys[last])
    _check_lifetimes(checked, now)
    for issuer, subject in pairwise(chain):
        _check_issued(subject, issuer)
    return checked


def _parse(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)
    if certificate.public_bytes(Encoding.DER) != der:
        raise _refused("a certificate does not re-encode to itself")
    # A certificate ends with its signature, a string of bits, which may say that some of its last
    # byte are none of its. The parser passes over that: one signed statement, several encodings.
    if not der.endswith(_WHOLE_BYTES + certificate.signature):
        raise _refused("a certificate's signature does not end with a byte")
    return certificate


def _check_form(certificate: x509.Certificate, name: str) -> ec.EllipticCurvePublicKey:
    if certificate.version is not x509.Version.v3:
        raise _refused(f"{name}: not an X.509 version 3 certificate")
    if certificate.serial_number <= 0:
        raise _refused(f"{name}: serial number is not positive")
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise _refused(f"{name}: not signed with ECDSA and SHA-384")
    for extension in certificate.extensions:  # raises where one occurs twice
        if extension.critical and not isinstance(extension.value, _UNDERSTOOD):
            raise _refused(f"{name}: unknown critical extension {extension.oid.dotted_string}")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _refused(f"{name}: not a P-384 key")
    return key


def _lifetime(certificate: x509.Certificate) -> Lifetime:
    return Lifetime(
        _milliseconds(certificate.not_valid_before_utc),
        _milliseconds(certificate.not_valid_after_utc),
    )


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp()) * 1000


def _check_lifetimes(chain: CheckedChain, now: int) -> None:
    """Both ends belong to the lifetime (RFC 5280 section 4.1.2.5)."""
    last = len(chain.lifetimes) - 1
    for depth, lifetime in enumerate(chain.lifetimes):
        name = _name(depth, last)
        if now < lifetime.not_before:
            raise _refused(f"{name}: not yet valid")
        if now > lifetime.not_after:
            raise _refused(f"{name}: expired")


def _name(depth: int, last: int) -> str:
    return "root" if depth == 0 else "leaf" if depth == last else f"certificate {depth}"


def _check_issuer(certificate: x509.Certificate, below: int, name: str) -> None:
    """``below``: how many certificates that are no leaf follow this one."""
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.critical or not constraints.value.ca:
        raise _refused(f"{name}: not a certification authority")
    path_length = constraints.value.path_length
    if path_length is not None and below > path_length:
        raise _refused(f"{name}: too many authorities below it")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None or not usage.value.key_cert_sign:
        raise _refused(f"{name}: may not sign certificates")


def _check_leaf(certificate: x509.Certificate) -> None:
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.value.ca:
        raise _refused("leaf: is a certification authority")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None or not usage.value.digital_signature:
        raise _refused("leaf: may not sign documents")


def _extension(certificate: x509.Certificate, kind: type[T]) -> x509.Extension[T] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _check_issued(subject: x509.Certificate, issuer: x509.Certificate) -> None:
    """Names, equal inner and outer algorithm, and the signature."""
    try:
        subject.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - ValueError, TypeError or InvalidSignature: one meaning
        raise _refused("a certificate was not issued by the one before it") from None


def _refused(detail: str) -> EvidenceError:
    return EvidenceError(Code.EVIDENCE_CHAIN, detail)
