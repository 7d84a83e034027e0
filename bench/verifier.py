"""What verification costs beside the signature checks that it cannot do without (SPEC 3.8).

Run by `make bench`, from the root of the repository: `python -m bench.verifier [--json]`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bench.rounds import measure, ratio, report
from casemate.attestation import ChainCache, parse_document, verify_document, verify_evidence
from casemate.attestation.cose import CoseSign1
from tests.support import evidence as ev
from tests.support.documents import AWS_ROOTS, GENUINE, genuine
from tests.support.nitro_pki import NOW

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.attestation import UnverifiedDocument

ROUNDS = 200
SEEN_TARGET = 3.0  # times the one P-384 signature of the document
NEW_TARGET = 2.0  # times the four signatures of the chain and the one of the document

ES384 = ec.ECDSA(hashes.SHA384())

Check = tuple[ec.EllipticCurvePublicKey, bytes, bytes]  # key, DER signature, message


def signatures(document: UnverifiedDocument) -> list[Check]:
    """Return the signatures of a genuine document: four of its chain, then its own."""
    chain = [x509.load_der_x509_certificate(der) for der in document.chain]
    keys = [cast("ec.EllipticCurvePublicKey", certificate.public_key()) for certificate in chain]
    checks = [
        (key, certificate.signature, certificate.tbs_certificate_bytes)
        for key, certificate in zip(keys[:-1], chain[1:], strict=True)
    ]
    numbers = (document.signature[:48], document.signature[48:])
    own = encode_dss_signature(*(int.from_bytes(number, "big") for number in numbers))
    cose = CoseSign1(document.protected, {}, document.payload, document.signature)
    return [*checks, (keys[-1], own, cose.signed_bytes())]


def verifying(checks: list[Check]) -> Callable[[], None]:
    """Return the bare signature checks as a case."""

    def run() -> None:
        for key, signature, message in checks:
            key.verify(signature, message, ES384)

    return run


def main() -> int:
    """Measure, print, and return 1 if a target is missed."""
    data = genuine(GENUINE)
    document = parse_document(data)
    now = document.timestamp
    checks = signatures(document)
    seen = ChainCache()
    bundle, policy, seen_bundle = ev.good(), ev.policy(), ChainCache()
    cases: dict[str, Callable[[], object]] = {
        "one signature": verifying(checks[-1:]),
        "five signatures": verifying(checks),
        "parse": lambda: parse_document(data),
        "document, seen chain": lambda: verify_document(
            data, roots=AWS_ROOTS, now=now, chains=seen
        ),
        "document, new chain": lambda: verify_document(data, roots=AWS_ROOTS, now=now),
        "evidence, seen chain": lambda: verify_evidence(
            bundle, policy, nonce=ev.NONCE, now=NOW, chains=seen_bundle
        ),
        "evidence, new chain": lambda: verify_evidence(bundle, policy, nonce=ev.NONCE, now=NOW),
    }
    times = measure(cases, ROUNDS)
    ratios = [
        ratio(times, f"{what}, {chain} chain", base, target)
        for what in ("document", "evidence")
        for chain, base, target in (
            ("seen", "one signature", SEEN_TARGET),
            ("new", "five signatures", NEW_TARGET),
        )
    ]
    return report("verifier", times, ratios)


if __name__ == "__main__":
    sys.exit(main())
