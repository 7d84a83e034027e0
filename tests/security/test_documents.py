"""Part A of the attack catalogue, A1 to A18: the encoding of documents and their signature.

Each attack is made by whoever can: where a signature must hold for the attack to make sense, the
throw-away PKI signs what is wrong.
"""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from casemate.attestation import parse_document, verify_document
from casemate.errors import Code, EvidenceError
from tests.support import evidence as ev
from tests.support import nitro_pki as pki
from tests.support.documents import DEBUG, GENUINE, TAMPERED, genuine, refused, verify, verify_aws
from tests.support.nitro_pki import ES384, NOW, Raw, cbor

ORDER = int(  # of P-384 (FIPS 186-4 D.1.2.4)
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)


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


def test_what_is_damaged_below_verifies_undamaged() -> None:
    verify(pki.document(ev.chain()))
    verify(cbor(cose()))
    verify_aws(genuine(GENUINE))


# Encoding


def test_a1_trailing_bytes() -> None:
    for name in (GENUINE, DEBUG):
        with pytest.raises(EvidenceError, match="EVIDENCE_COSE"):
            verify_aws(genuine(name) + b"\x00")
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
        b"\xa1\x18\x00" + cbor(bytes(48)),
    ],
    ids=["twice", "twice, indefinite", "once not shortest", "not shortest"],
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
    [
        "1c",
        "1d",
        "1e",
        "f7",
        "f0",
        "f97e00",
        "fa00000000",
        "fb0000000000000000",
        "c24101",
        "d81841f6",
        "d9010280",
        "20",
        "f820",
        "ff",
        "1f",
        "3f",
    ],
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
    wrongs: list[object] = [bytes(1025), "text", 0, True, [b"x"], {}]
    for wrong in wrongs:
        payload_refused(**{field: wrong})
    for right in (bytes(1024), bytes(513), b"", None):
        verify(pki.document(ev.chain(), **{field: right}))


def test_a11_sparse_registers() -> None:
    sparse = {index: bytes([index]) * 48 for index in (8, 4, 3, 2, 1, 0)}
    data = pki.document(ev.chain(), pcrs=sparse)
    document = verify_document(data, roots=ev.chain().roots, now=NOW)
    assert document.pcrs == sparse
    moved = ev.pcrs() | {0: ev.IMAGE[1], 1: ev.IMAGE[2], 2: ev.IMAGE[0]}
    with pytest.raises(EvidenceError, match="EVIDENCE_MEASUREMENTS"):
        ev.judge(ev.good(pcrs=moved))


# Signature


@pytest.mark.parametrize(
    "protected",
    [
        "",
        "a0",
        "a10126",
        "a1013823",
        "a10127",
        "a10105",
        "a2013822013822",
        "a2013822044101",
        "a201382202810a",
        "a10138220000",
        "a118013822",
        "bf013822ff",
        "a1190001" + "3822",
    ],
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
    others: list[object] = [[], b"", Raw(b"\xf6"), Raw(b"\xbf\xff")]
    for other in others:
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
    verify_aws(twin)


def test_a18_signature_by_another_key() -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    body = cbor(pki.payload(ev.chain()))
    signature = pki.raw_signature(stranger, pki.sig_structure(body))
    refused(cbor(cose(signature=signature)), Code.EVIDENCE_SIGNATURE)
    issuer = pki.raw_signature(ev.chain().keys[-2], pki.sig_structure(body))
    refused(cbor(cose(signature=issuer)), Code.EVIDENCE_SIGNATURE)


def test_a18_tampered_genuine_documents() -> None:
    with pytest.raises(EvidenceError, match="EVIDENCE_SIGNATURE"):
        verify_aws(genuine(TAMPERED))
    data = genuine(GENUINE)
    certificate = parse_document(data).certificate
    at = data.index(certificate) + len(certificate) - 1
    with pytest.raises(EvidenceError, match="EVIDENCE_CHAIN"):
        verify_aws(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
