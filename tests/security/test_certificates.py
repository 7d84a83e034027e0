"""Part A of the attack catalogue, A19 to A27: the certificate chain.

The throw-away PKI plays the malicious or careless authority, so that every signature holds and only
the check under test is left to refuse the chain.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from casemate.attestation import verify_document
from casemate.errors import Code, EvidenceError
from tests.support import der
from tests.support import evidence as ev
from tests.support import nitro_pki as pki
from tests.support.documents import AWS_ROOTS, VECTORS, genuine, refused, verify
from tests.support.nitro_pki import ES384, Spec, cbor

if TYPE_CHECKING:
    from collections.abc import Callable


def specs(depth: int | None = None, **changes: object) -> list[Spec]:
    made = pki.real_shape()
    if depth is not None:
        made[depth] = replace(made[depth], **changes)  # type: ignore[arg-type]
    return made


def chain_refused(made: list[Spec]) -> None:
    chain = pki.issue(made)
    refused(pki.document(chain), Code.EVIDENCE_CHAIN, chain)


def test_the_real_shape_verifies() -> None:
    chain = pki.issue(specs())
    verify(pki.document(chain), chain)


def test_a19_foreign_roots() -> None:
    own = pki.issue(specs())
    refused(pki.document(own), Code.EVIDENCE_ROOT)
    pinned = [ev.chain().certificates[0], *own.certificates[1:-1]]
    refused(pki.document(own, cabundle=pinned), Code.EVIDENCE_CHAIN)


def test_a20_order_and_completeness() -> None:
    root, regional, zonal, instance = ev.chain().certificates[:-1]
    for bundle in (
        [root, zonal, instance],
        [root, regional, zonal],
        [root, root, regional, zonal, instance],
        [root, regional, regional, zonal, instance],
        [root, zonal, regional, instance],
        [root],
        [root, regional, zonal, instance, ev.chain().certificates[-1]],
    ):
        refused(pki.document(ev.chain(), cabundle=bundle), Code.EVIDENCE_CHAIN)
    for bundle in ([instance, zonal, regional, root], [regional, zonal, instance]):
        refused(pki.document(ev.chain(), cabundle=bundle), Code.EVIDENCE_ROOT)


def test_a21_a_root_is_known_by_its_bytes_not_by_its_name() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    forged = pki.certificate(specs()[0], specs()[0].cn, key, key)
    bundle = [forged, *ev.chain().certificates[1:-1]]
    refused(pki.document(ev.chain(), cabundle=bundle), Code.EVIDENCE_ROOT)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {"ca": False, "path_length": None},
        {"constraints": False},
        {"constraints_critical": False},
        {"usage": ("digital_signature", "crl_sign")},
        {"usage": ()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a22_issuers_that_may_not_issue(depth: int, changes: dict[str, object]) -> None:
    chain_refused(specs(depth, **changes))


def test_a22_the_leaf_cannot_issue() -> None:
    made = pki.real_shape()
    leaf = replace(made[-1], cn="below.the.leaf")
    chain_refused([*made, leaf])


@pytest.mark.parametrize("depth", [1, 2])
def test_a23_path_length_exceeded(depth: int) -> None:
    chain_refused(specs(depth, path_length=2 - depth))


def test_a23_an_authority_below_the_instance() -> None:
    made = pki.real_shape()
    chain_refused([*made[:4], replace(made[3], cn="one.too.many"), made[4]])


@pytest.mark.parametrize(
    "changes",
    [
        {"ca": True, "path_length": 0, "usage": ("digital_signature", "key_cert_sign")},
        {"ca": True},
        {"usage": ("content_commitment",)},
        {"usage": ()},
    ],
)
def test_a23_leaf_profile(changes: dict[str, object]) -> None:
    chain_refused(specs(4, **changes))


def constraints(content: str) -> Callable[[der.Node], None]:
    def edit(tbs: der.Node) -> None:
        der.extension(tbs, der.BASIC_CONSTRAINTS).children[2].content = bytes.fromhex(content)

    return edit


def test_a23_path_length_of_nine_bytes() -> None:
    chain_refused(specs(1, edit=constraints("300e0101ff0209010000000000000000")))


@pytest.mark.parametrize("depth", range(5))
def test_a24_other_curves_and_hashes(depth: int) -> None:
    if depth < 4:  # an issuer on P-256 signs with SHA-384 all the same
        chain_refused(specs(depth, curve=ec.SECP256R1()))
    chain_refused(specs(depth, hash=hashes.SHA256()))


def test_a24_leaf_on_p256() -> None:
    chain = pki.issue(specs(4, curve=ec.SECP256R1()))
    body = cbor(pki.payload(chain))
    refused(cbor([ES384, {}, body, bytes(95) + b"\x01"]), Code.EVIDENCE_CHAIN, chain)


def test_a24_inner_and_outer_algorithm_differ() -> None:
    def edit(tbs: der.Node) -> None:
        tbs.children[2].children[0].content = bytes.fromhex("2a8648ce3d040302")

    chain_refused(specs(2, edit=edit))


def _critical_boolean(tbs: der.Node) -> None:
    der.extension(tbs, der.BASIC_CONSTRAINTS).children[1].content = b"\x01"


def _default_encoded(tbs: der.Node) -> None:
    usage = der.extension(tbs, der.KEY_USAGE)
    usage.children[1:-1] = [der.Node(1, b"\x00")]  # critical FALSE is left out in DER


def _long_length(tbs: der.Node) -> None:
    value = der.extension(tbs, der.BASIC_CONSTRAINTS).children[2]
    value.head = bytes([4, 0x81, len(value.content)])


def _long_tbs(tbs: der.Node) -> None:
    size = len(tbs.encode()) - 4
    tbs.head = b"\x30\x83\x00" + size.to_bytes(2, "big")


def _padded_serial(tbs: der.Node) -> None:
    tbs.children[1].content = b"\x00\x01"


def _negative_serial(tbs: der.Node) -> None:
    tbs.children[1].content = b"\xff"


def _duplicate(tbs: der.Node) -> None:
    usage = der.extension(tbs, der.KEY_USAGE)
    der.extensions(tbs).children.append(copy.deepcopy(usage))


def _version_1(tbs: der.Node) -> None:
    del tbs.children[0]


def _version_2(tbs: der.Node) -> None:
    tbs.children[0].children[0].content = b"\x01"


def _no_extensions(tbs: der.Node) -> None:
    tbs.children[:] = [child for child in tbs.children if child.tag != 0xA3]


def _extra_in_tbs(tbs: der.Node) -> None:
    tbs.children.append(der.Node(5))


@pytest.mark.parametrize("depth", [1, 3, 4])
@pytest.mark.parametrize(
    "edit",
    [_critical_boolean, _default_encoded, _long_length, _long_tbs, _padded_serial]
    + [_negative_serial, _duplicate, _no_extensions, _extra_in_tbs, _version_1, _version_2]
    + [constraints(c) for c in ("3003010101", "30070101ff02020000", "30080101ff0201000500")]
    + [constraints(c) for c in ("30800101ff0201000000", "30060101ff0201ff", "3003010100", "")],
)
@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
def test_a25_certificates_that_no_builder_makes(
    depth: int, edit: Callable[[der.Node], None]
) -> None:
    chain_refused(specs(depth, edit=edit))


@pytest.mark.parametrize("depth", range(5))
def test_a25_unknown_critical_extensions(depth: int) -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    names = x509.SubjectAlternativeName([x509.DNSName("x.example")])
    for extension in (unknown, names):
        chain_refused(specs(depth, extra=[(extension, True)]))
        chain = pki.issue(specs(depth, extra=[(extension, False)]))
        verify(pki.document(chain), chain)


def test_a25_bytes_around_the_certificate() -> None:
    certificates = ev.chain().certificates
    for wrong in (certificates[-1] + b"\x00", b"\x30\x83\x00" + certificates[-1][2:]):
        refused(pki.document(ev.chain(), certificate=wrong), Code.EVIDENCE_CHAIN)
    bundle = [*certificates[:-2], certificates[-2] + b"\x00"]
    refused(pki.document(ev.chain(), cabundle=bundle), Code.EVIDENCE_CHAIN)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a25_a_signature_that_ends_within_a_byte(depth: int) -> None:
    """A zero at its end that is said to be none of its bits: signed as before, other bytes."""
    chains = (pki.issue(specs()) for _ in range(200))
    chain = next(one for one in chains if not one.certificates[depth][-1] & 1)
    certificates = list(chain.certificates)
    genuine_one = certificates[depth]
    length = len(x509.load_der_x509_certificate(genuine_one).signature)
    certificates[depth] = genuine_one[: -length - 1] + b"\x01" + genuine_one[-length:]
    same = x509.load_der_x509_certificate(certificates[depth])  # the parser says nothing
    assert same.signature == genuine_one[-length:]
    data = pki.document(chain, certificate=certificates[-1], cabundle=certificates[:-1])
    refused(data, Code.EVIDENCE_CHAIN, chain)


def test_a25_a_parser_that_forgives_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Today's parser is as strict as DER; should one not be, what it understood is compared."""
    data = pki.document(ev.chain())
    load = x509.load_der_x509_certificate
    wrong = ev.chain().certificates[2]
    other = ev.chain().certificates[1]

    def forgiving(der: bytes) -> x509.Certificate:
        return load(other if der == wrong else der)

    monkeypatch.setattr(x509, "load_der_x509_certificate", forgiving)
    with pytest.raises(EvidenceError, match="re-encode"):
        verify(data)


@pytest.mark.parametrize("depth", range(5))
def test_a26_every_certificate_is_judged_at_the_present(depth: int) -> None:
    chain_refused(specs(depth, after=-timedelta(seconds=1)))
    chain_refused(specs(depth, before=-timedelta(seconds=1)))
    zero = timedelta(0)
    for changes in ({"after": zero}, {"before": zero}):  # both ends belong to the lifetime
        chain = pki.issue(specs(depth, **changes))
        verify(pki.document(chain), chain)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a26_names_are_chained(depth: int) -> None:
    chain_refused(specs(depth, issuer_cn="somebody.else"))


@pytest.mark.parametrize("name", sorted(path.stem for path in VECTORS.glob("*.cbor")))
def test_a27_genuine_documents_are_stale_today(name: str) -> None:
    with pytest.raises(EvidenceError, match="EVIDENCE_CHAIN"):
        verify_document(genuine(name), roots=AWS_ROOTS, now=time.time_ns() // 1_000_000)
