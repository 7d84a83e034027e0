"""Part A of the attack catalogue: documents, signatures and certificates, with real bytes.

Each attack is made by whoever can: where a signature must hold for the attack to make sense, the
throw-away PKI signs what is wrong. The genuine documents are in tests/vectors/nitro.
"""

from __future__ import annotations

import copy
import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from casemate.attestation import parse_document, verify_document
from casemate.errors import Code, EvidenceError, PolicyError
from tests.support import der
from tests.support import evidence as ev
from tests.support import nitro_pki as pki
from tests.support.nitro_pki import ES384, NOW, Raw, Spec, cbor

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.attestation import EvidenceBundle, TrustPolicy

VECTORS = Path(__file__).parents[1] / "vectors" / "nitro"
AWS_ROOTS = frozenset(
    [bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")]
)
GENUINE = "20250829_bedrock_7743a3dd"
DEBUG = "20260803_world-chain_13a44c64"
TPM = "20260325_attestation-server_8d02c24a"
ORDER = int(  # of P-384 (FIPS 186-4 D.1.2.4)
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)


def genuine(name: str) -> bytes:
    return (VECTORS / f"{name}.cbor").read_bytes()


def aws(data: bytes) -> None:
    """Verify under AWS's root at the document's own time."""
    verify_document(data, roots=AWS_ROOTS, now=parse_document(data).timestamp)


def verify(data: bytes, chain: pki.Chain | None = None, now: int = NOW) -> None:
    verify_document(data, roots=(chain or ev.chain()).roots, now=now)


def refused(data: bytes, code: Code | None = None, chain: pki.Chain | None = None) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify(data, chain)
    assert code is None or caught.value.code == code


def payload_refused(**changes: object) -> None:
    refused(pki.document(ev.chain(), **changes), Code.EVIDENCE_PAYLOAD)


def cose(
    protected: object = ES384,
    unprotected: object = None,
    body: object = None,
    signature: object = None,
) -> list[object]:
    """The four members of a good document, with some replaced."""
    good = cbor(pki.payload(ev.chain()))
    signed = pki.raw_signature(ev.chain().keys[-1], pki.sig_structure(good))
    return [
        protected,
        {} if unprotected is None else unprotected,
        good if body is None else body,
        signed if signature is None else signature,
    ]


def test_the_helpers_make_documents_that_verify() -> None:
    verify(pki.document(ev.chain()))
    verify(cbor(cose()))
    aws(genuine(GENUINE))


# Encoding


def test_a1_trailing_bytes() -> None:
    for name in (GENUINE, DEBUG):
        with pytest.raises(EvidenceError, match="EVIDENCE_COSE"):
            aws(genuine(name) + b"\x00")
    body = cbor(pki.payload(ev.chain()))
    refused(pki.sign(ev.chain(), Raw(body + b"\x00")), Code.EVIDENCE_PAYLOAD)


@pytest.mark.parametrize("tag", [b"\xd8\x62", b"\xd2\xd2", b"\xd8\x12", b"\xd1", b"\xc2"])
def test_a2_other_tags(tag: bytes) -> None:
    refused(tag + cbor(cose()), Code.EVIDENCE_COSE)


def test_a2_one_tag_18_is_allowed() -> None:
    verify(b"\xd2" + cbor(cose()))


def test_a2_other_shapes() -> None:
    good = cose()
    for shape in (good[:3], [*good, b""], {0: good[0]}, [good[0], good[1], None, good[3]]):
        refused(cbor(shape), Code.EVIDENCE_COSE)
    refused(cbor([good[0], good[1], b"", good[3]]), Code.EVIDENCE_COSE)
    refused(b"\x9f" + cbor(good)[1:] + b"\xff", Code.EVIDENCE_COSE)


@pytest.mark.parametrize(
    "pcrs",
    [
        b"\xa2" + 2 * (b"\x00" + cbor(bytes(48))),
        b"\xbf" + 2 * (b"\x00" + cbor(bytes(48))) + b"\xff",
        b"\xa2\x00" + cbor(bytes(48)) + b"\x18\x00" + cbor(bytes(48)),
    ],
    ids=["twice", "twice, indefinite", "once not shortest"],
)
def test_a3_duplicate_registers(pcrs: bytes) -> None:
    payload_refused(pcrs=Raw(pcrs))


def test_a3_duplicate_pcrs_key() -> None:
    fields = pki.payload(ev.chain())
    body = cbor(fields)
    twice = bytes([body[0] + 1]) + body[1:] + cbor("pcrs") + cbor(pki.registers())
    refused(pki.sign(ev.chain(), Raw(twice)), Code.EVIDENCE_PAYLOAD)


@pytest.mark.parametrize("key", [False, True, "0", -1, 32, 1 << 40, b"\x00"])
def test_a4_register_keys(key: object) -> None:
    wrong = b"\xa1" + cbor(key) + cbor(bytes(48))
    payload_refused(pcrs=Raw(wrong))


def test_a4_too_many_or_no_registers() -> None:
    payload_refused(pcrs={index: bytes(48) for index in range(33)})
    payload_refused(pcrs={})


@pytest.mark.parametrize(
    "item",
    ["1c", "1d", "1e", "f7", "f0", "f97e00", "fa00000000", "fb0000000000000000"]
    + ["c24101", "d81841f6", "d9010280", "20", "f820", "ff", "1f", "3f"],
)
def test_a5_foreign_items(item: str) -> None:
    payload_refused(nonce=Raw(bytes.fromhex(item)))


def test_a6_indefinite_maps_are_accepted() -> None:
    fields = pki.payload(ev.chain(), pcrs=pki.indefinite(pki.registers()))
    verify(pki.sign(ev.chain(), pki.indefinite(fields)))


@pytest.mark.parametrize("value", [b"\x5f\x41\x00\xff", b"\x5f\xff", b"\x7f\x61a\xff"])
def test_a6_chunked_strings_are_not(value: bytes) -> None:
    payload_refused(nonce=Raw(value))


def test_a6_indefinite_arrays_are_not() -> None:
    bundle = b"\x9f" + b"".join(map(cbor, ev.chain().certificates[:-1])) + b"\xff"
    payload_refused(cabundle=Raw(bundle))


def test_a7_depth_and_declared_sizes() -> None:
    payload_refused(nonce=Raw(b"\x81" * 50 + b"\x00"))
    payload_refused(nonce=Raw(b"\xa1\x00" * 50 + b"\x00"))
    for head in (b"\x9a\xff\xff\xff\xff", b"\xba\xff\xff\xff\xff", b"\x5b" + b"\xff" * 8):
        payload_refused(nonce=Raw(head))
        refused(head, Code.EVIDENCE_COSE)
    payload_refused(cabundle=[*ev.chain().certificates[:-1], *[b"x"] * 5])
    payload_refused(cabundle=[])


def test_a7_size_of_the_document() -> None:
    refused(b"", Code.EVIDENCE_SIZE)
    refused(bytes(20_481), Code.EVIDENCE_SIZE)
    refused(b"\x00" * 262_144, Code.EVIDENCE_SIZE)
    refused(bytes(20_480), Code.EVIDENCE_COSE)
    refused(cbor(cose(body=bytes(16_385))), Code.EVIDENCE_COSE)


def test_a8_keys() -> None:
    payload_refused(extra=None)
    payload_refused(nitrotpm_pcrs=pki.registers())
    for name in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"):
        payload_refused(**{name: ...})
    verify(pki.document(ev.chain(), public_key=..., user_data=..., nonce=...))


@pytest.mark.parametrize(
    "changes",
    [
        {"module_id": ""},
        {"module_id": "x" * 256},
        {"module_id": b"i-0"},
        {"module_id": Raw(b"\x61\xff")},
        {"digest": "SHA256"},
        {"digest": "sha384"},
        {"digest": None},
        {"timestamp": 0},
        {"timestamp": -1},
        {"timestamp": str(NOW)},
        {"timestamp": Raw(bytes.fromhex("fb42783c51f5000000"))},
        {"timestamp": True},
        {"pcrs": {0: bytes(47)}},
        {"pcrs": {0: bytes(32)}},
        {"pcrs": {0: "00" * 48}},
        {"pcrs": {0: None}},
        {"pcrs": [bytes(48)] * 16},
        {"certificate": b""},
        {"certificate": bytes(1025)},
        {"certificate": None},
        {"cabundle": {0: b"x"}},
        {"cabundle": [b""]},
        {"cabundle": ["x"]},
    ],
)
def test_a9_values(changes: dict[str, object]) -> None:
    payload_refused(**changes)


@pytest.mark.parametrize("field", ["user_data", "nonce", "public_key"])
def test_a10_optional_fields(field: str) -> None:
    for wrong in (bytes(1025), "text", 0, True, [b"x"], {}):
        payload_refused(**{field: wrong})
    for right in (bytes(1024), bytes(513), b"", None):
        verify(pki.document(ev.chain(), **{field: right}))


def test_a11_sparse_registers() -> None:
    sparse = {index: bytes([index]) * 48 for index in (8, 4, 3, 2, 1, 0)}
    data = pki.document(ev.chain(), pcrs=sparse)
    document = verify_document(data, roots=ev.chain().roots, now=NOW)
    assert document.pcrs == sparse
    moved = ev.pcrs() | {0: ev.IMAGE[1], 1: ev.IMAGE[2], 2: ev.IMAGE[0]}
    assert judged_code(ev.good(pcrs=moved)) == Code.EVIDENCE_MEASUREMENTS


# Signature


@pytest.mark.parametrize(
    "protected",
    ["", "a0", "a10126", "a1013823", "a10127", "a10105", "a2013822013822", "a2013822044101"]
    + ["a201382202810a", "a10138220000", "a118013822", "bf013822ff", "a11901" + "003822"],
)
def test_a12_algorithm(protected: str) -> None:
    header = bytes.fromhex(protected)
    refused(pki.sign(ev.chain(), pki.payload(ev.chain()), header), Code.EVIDENCE_ALGORITHM)


def test_a12_algorithm_outside_the_protected_header() -> None:
    for unprotected in (Raw(bytes.fromhex("a1013822")), Raw(bytes.fromhex("a10126"))):
        with pytest.raises(EvidenceError):
            verify(cbor(cose(protected=b"", unprotected=unprotected)))


def test_a13_unprotected_header() -> None:
    refused(cbor(cose(unprotected={4: b"key"})), Code.EVIDENCE_ALGORITHM)
    refused(cbor(cose(unprotected={"payload": b"x"})), Code.EVIDENCE_ALGORITHM)
    for other in ([], b"", Raw(b"\xf6"), Raw(b"\xbf\xff")):
        refused(cbor(cose(unprotected=other)), Code.EVIDENCE_COSE)


def test_a14_signature_forms() -> None:
    good = cose()[3]
    assert isinstance(good, bytes)
    r, s = int.from_bytes(good[:48], "big"), int.from_bytes(good[48:], "big")
    for wrong in (encode_dss_signature(r, s), good[:-1], good + b"\x00", b"", good.hex()):
        refused(cbor(cose(signature=wrong)), Code.EVIDENCE_COSE)
    top = ((1 << 384) - 1).to_bytes(48, "big")
    bare = (bytes(96), good[:48] + bytes(48), bytes(48) + good[48:], good[:48] + top)
    for wrong in (*bare, good[:48] + ORDER.to_bytes(48, "big"), good[48:] + good[:48]):
        refused(cbor(cose(signature=wrong)), Code.EVIDENCE_SIGNATURE)


def test_a15_context_and_external_data() -> None:
    body = cbor(pki.payload(ev.chain()))
    for structure in (
        pki.sig_structure(body, context="Signature"),
        pki.sig_structure(body, context="CounterSignature"),
        pki.sig_structure(body, external=b"x"),
        body,
    ):
        signature = pki.raw_signature(ev.chain().keys[-1], structure)
        refused(cbor(cose(signature=signature)), Code.EVIDENCE_SIGNATURE)


def test_a16_the_received_bytes_are_what_is_signed() -> None:
    """Another encoding of the same payload has the same meaning and no signature."""
    fields = pki.payload(ev.chain())
    refused(cbor(cose(body=cbor(pki.indefinite(fields)))), Code.EVIDENCE_SIGNATURE)
    backwards = dict(reversed(fields.items()))
    refused(cbor(cose(body=cbor(backwards))), Code.EVIDENCE_SIGNATURE)


def test_a17_the_high_s_twin_verifies() -> None:
    """Documented: ECDSA is malleable, so nothing may be keyed on a document's bytes."""
    data = genuine(GENUINE)
    s = int.from_bytes(data[-48:], "big")
    twin = data[:-48] + (ORDER - s).to_bytes(48, "big")
    assert twin != data
    aws(twin)


def test_a18_signature_by_another_key() -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    body = cbor(pki.payload(ev.chain()))
    signature = pki.raw_signature(stranger, pki.sig_structure(body))
    refused(cbor(cose(signature=signature)), Code.EVIDENCE_SIGNATURE)
    issuer = pki.raw_signature(ev.chain().keys[-2], pki.sig_structure(body))
    refused(cbor(cose(signature=issuer)), Code.EVIDENCE_SIGNATURE)


def test_a18_tampered_genuine_documents() -> None:
    with pytest.raises(EvidenceError, match="EVIDENCE_SIGNATURE"):
        aws(genuine("20221109_go-nitro-enclave-attesta_7df2cdc0"))
    data = genuine(GENUINE)
    certificate = parse_document(data).certificate
    at = data.index(certificate) + len(certificate) - 1
    with pytest.raises(EvidenceError, match="EVIDENCE_CHAIN"):
        aws(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


# Certificates


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
    der.extension(tbs, der.KEY_USAGE).children[1].content = b"\x00"


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


def _no_extensions(tbs: der.Node) -> None:
    tbs.children[:] = [child for child in tbs.children if child.tag != 0xA3]


def _extra_in_tbs(tbs: der.Node) -> None:
    tbs.children.append(der.Node(5))


@pytest.mark.parametrize("depth", [1, 3, 4])
@pytest.mark.parametrize(
    "edit",
    [_critical_boolean, _default_encoded, _long_length, _long_tbs, _padded_serial]
    + [_negative_serial, _duplicate, _no_extensions, _extra_in_tbs]
    + [constraints(c) for c in ("3003010101", "30070101ff02020000", "30080101ff0201000500")]
    + [constraints(c) for c in ("30800101ff0201000000", "30060101ff0201ff", "3003010100", "")],
)
@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
def test_a25_certificates_that_no_builder_makes(
    depth: int, edit: Callable[[der.Node], None]
) -> None:
    if edit is _default_encoded and depth == 4:
        pytest.skip("the leaf's key usage has no critical flag to encode")
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


@pytest.mark.parametrize("depth", range(5))
def test_a26_every_certificate_is_judged_at_the_present(depth: int) -> None:
    chain_refused(specs(depth, after=-pki.dt.timedelta(seconds=1)))
    chain_refused(specs(depth, before=-pki.dt.timedelta(seconds=1)))
    zero = pki.dt.timedelta(0)
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


# Policy and binding


def judged_code(
    bundle: EvidenceBundle,
    trusted: TrustPolicy | None = None,
    nonce: bytes | None = ev.NONCE,
    now: int = NOW,
) -> Code:
    with pytest.raises(EvidenceError) as caught:
        ev.judge(bundle, trusted, nonce=nonce, now=now)
    return caught.value.code


def under_aws(name: str, **changes: object) -> Code:
    """The code that refuses a genuine document under AWS's root at its own time."""
    data = genuine(name)
    document = parse_document(data)
    bundle = replace(ev.unsigned(), attestation_document=data)
    trusted = ev.policy(roots=AWS_ROOTS, evidence="stapled", **changes)
    return judged_code(bundle, trusted, document.nonce, document.timestamp)


def test_a29_a_genuine_debug_document() -> None:
    assert any(parse_document(genuine(DEBUG)).pcrs[4])
    assert under_aws(DEBUG) == Code.EVIDENCE_DEBUG


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a29_a_single_zero_register(index: int) -> None:
    bundle = ev.good(pcrs=ev.pcrs() | {index: bytes(48)})
    for allow in (False, True):
        assert judged_code(bundle, ev.policy(allow_debug=allow)) == Code.EVIDENCE_DEBUG


@pytest.mark.parametrize("index", [0, 1, 2, 16])
def test_a30_a_missing_register_never_matches(index: int) -> None:
    pcrs = {key: value for key, value in ev.pcrs().items() if key != index}
    code = Code.EVIDENCE_CONFIGURATION if index == 16 else Code.EVIDENCE_DEBUG
    for allow in (False, True):
        assert judged_code(ev.good(pcrs=pcrs), ev.policy(allow_debug=allow)) == code


def test_a30_no_expectation_is_no_policy() -> None:
    empty: dict[str, object]
    for empty in ({"releases": ()}, {"roots": frozenset()}, {"models": ()}, {"audience": ""}):
        with pytest.raises(PolicyError, match="POLICY_INVALID"):
            ev.policy(**empty)
    for register in ("pcr0", "pcr1", "pcr2", "pcr16"):
        for value in (b"", bytes(48), b"\x01" * 47):
            with pytest.raises(PolicyError, match="POLICY_INVALID"):
                replace(ev.RELEASE, **{register: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a31_each_image_register_counts(index: int) -> None:
    bundle = ev.good(pcrs=ev.pcrs() | {index: b"\x66" * 48})
    assert judged_code(bundle) == Code.EVIDENCE_MEASUREMENTS


def test_a31_registers_of_different_releases_do_not_mix() -> None:
    other = replace(ev.RELEASE, name="0.2.0", pcr0=b"\x20" * 48, pcr2=b"\x22" * 48)
    mixed = ev.good(pcrs=ev.pcrs() | {2: b"\x22" * 48})
    trusted = ev.policy(releases=(ev.RELEASE, other))
    assert judged_code(mixed, trusted) == Code.EVIDENCE_MEASUREMENTS


def test_a32_the_signer_and_the_role_do_not_vouch() -> None:
    signed = {3: b"\x03" * 48, 4: b"\x04" * 48, 8: b"\x08" * 48}
    bundle = ev.good(pcrs=ev.pcrs(pcr0=b"\x66" * 48) | signed)
    assert judged_code(bundle) == Code.EVIDENCE_MEASUREMENTS
    with pytest.raises(PolicyError):  # and a policy cannot name them
        ev.TrustPolicy.parse(ev.policy().to_toml().replace("pcr0 =", "pcr8 ="))


def test_a33_the_bundle_has_no_registers_of_its_own() -> None:
    fields = set(ev.EvidenceBundle.__dataclass_fields__)
    assert not {name for name in fields if "pcr" in name or "image" in name}


@pytest.mark.parametrize(
    "nonce",
    [None, ..., b"", ev.NONCE[:16], ev.NONCE[:-1], ev.NONCE + b"\x00", bytes(32), ev.NONCE[::-1]],
)
def test_a34_nonces_that_are_not_the_one_issued(nonce: object) -> None:
    assert judged_code(ev.good(nonce=nonce)) == Code.EVIDENCE_NONCE


@pytest.mark.parametrize("nonce", [b"", bytes(15), bytes(65)])
def test_a34_nonces_that_nobody_should_issue(nonce: bytes) -> None:
    assert judged_code(ev.good(nonce=nonce), nonce=nonce) == Code.EVIDENCE_NONCE


def test_a35_right_nonce_an_hour_old() -> None:
    hour = 3_600_000
    assert judged_code(ev.good(timestamp=NOW - hour)) == Code.EVIDENCE_AGE
    assert judged_code(ev.good(), now=NOW + hour) == Code.EVIDENCE_AGE


def test_a36_a_key_that_the_document_does_not_bind() -> None:
    mine = replace(ev.KEY, public_key=b"\x66" * 1216).encode()
    honest = ev.good()
    for keys in ((mine,), (*honest.key_configs, mine), (mine, *honest.key_configs), ()):
        assert judged_code(replace(honest, key_configs=keys)) == Code.EVIDENCE_BINDING


def test_a36_parts_of_another_enclave() -> None:
    honest = ev.good()
    instance = replace(ev.INSTANCE, instance_id=b"\x08" * 16).encode()
    assert judged_code(replace(honest, instance_config=instance)) == Code.EVIDENCE_BINDING
    assert judged_code(replace(honest, measurement_log=b"\x80")) == Code.EVIDENCE_BINDING
    other = replace(ev.CONFIGURATION, minimum_versions={}).encode()
    assert judged_code(replace(honest, configuration=other)) == Code.EVIDENCE_CONFIGURATION


def test_a37_user_data_of_another_protocol() -> None:
    bundle = ev.unsigned()
    parts = (bundle.configuration, *bundle.key_configs)
    parts = (*parts, bundle.instance_config, bundle.measurement_log)
    kms = hashlib.sha384(b"casemate/v1 kms\x00").digest()
    for said in (kms, hashlib.sha384(b"".join(parts)).digest(), None, b"", bytes(48)):
        assert judged_code(ev.good(user_data=said)) == Code.EVIDENCE_BINDING
    longer = bundle.user_data() + b"\x00"
    assert judged_code(ev.good(user_data=longer)) == Code.EVIDENCE_BINDING


@pytest.mark.parametrize("public_key", [b"", b"\x30\x82"])
def test_a37_a_document_made_for_kms(public_key: bytes) -> None:
    assert judged_code(ev.good(public_key=public_key)) == Code.EVIDENCE_BINDING


def test_a37_bytes_cannot_move_between_parts() -> None:
    bundle = ev.unsigned()
    first, rest = bundle.configuration, bundle.key_configs[0]
    moved = replace(bundle, configuration=first + rest[:1], key_configs=(rest[1:],))
    assert moved.user_data() != bundle.user_data()
    split = replace(bundle, key_configs=(rest[:7], rest[7:]))
    swapped = replace(bundle, key_configs=(), accelerator=bundle.key_configs)
    assert len({b.user_data() for b in (bundle, moved, split, swapped)}) == 4


def test_a38_a_genuine_nitrotpm_document() -> None:
    aws(genuine(TPM))
    assert under_aws(TPM) == Code.EVIDENCE_PLATFORM


def test_a38_right_registers_under_the_other_name() -> None:
    bundle = ev.good(pcrs=..., nitrotpm_pcrs=ev.pcrs())
    assert judged_code(bundle) == Code.EVIDENCE_PLATFORM


def test_a39_documents_of_emulators() -> None:
    emulated = pki.payload(ev.chain(), certificate=bytes(64), cabundle=[bytes(64)])
    data = cbor([ES384, {}, cbor(emulated), bytes(96)])
    refused(data, Code.EVIDENCE_ROOT)
    anything = frozenset([hashlib.sha256(bytes(64)).digest()])
    with pytest.raises(EvidenceError, match="EVIDENCE_CHAIN"):
        verify_document(data, roots=anything, now=NOW)


def test_a39_a_simulated_root_is_no_root_of_aws() -> None:
    with pytest.raises(EvidenceError, match="EVIDENCE_ROOT"):
        verify_document(pki.document(ev.chain()), roots=AWS_ROOTS, now=NOW)
