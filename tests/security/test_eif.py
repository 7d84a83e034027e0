"""Part A of the attack catalogue, A54 and A55, and what A33 says of images."""

from __future__ import annotations

import io
import struct

import pytest

from casemate.attestation.eif import EifImage, measure_eif
from casemate.errors import Code, EvidenceError
from tests.support import eif_builder as eb
from tests.support.nitro_pki import NOW, cbor

PCR0 = eb.registers(eb.standard())[0]
DAY = 86_400_000


def measured(image: eb.Eif, now: int = NOW) -> EifImage:
    return measure_eif(io.BytesIO(image.encode()), now=now)


def refused(image: eb.Eif | bytes, text: str) -> None:
    data = image if isinstance(image, bytes) else image.encode()
    with pytest.raises(EvidenceError, match=text) as caught:
        measure_eif(io.BytesIO(data), now=NOW)
    assert caught.value.code == Code.MALFORMED


def test_the_builder_makes_images_that_are_measured() -> None:
    assert measured(eb.Eif()).pcr0 == PCR0


# A54: images on which two readers could disagree


def test_a54_bad_checksum() -> None:
    refused(eb.Eif(crc=0), "checksum")


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": {1: 0}},
        {"offsets": {0: 560}},
        {"offsets": {4: 548}},
        {"sizes": {0: 599}},
        {"sizes": {4: 1 << 63}},
        {"sizes": {1: 0}},
        {"offsets": {5: 1}},
        {"sizes": {31: 1}},
        {"count": 4},
        {"count": 6},
        {"count": 0},
    ],
)
def test_a54_table_and_sections_disagree(changes: dict[str, object]) -> None:
    refused(eb.Eif(**changes), "table|ends|bytes after|sections")  # type: ignore[arg-type]


def test_a54_two_kernels_and_33_sections() -> None:
    refused(eb.Eif([(eb.KERNEL, b"other"), *eb.standard()]), "not exactly one kernel")
    refused(eb.Eif([*eb.standard(), (eb.CMDLINE, b"x")]), "not exactly one cmdline")
    many = eb.Eif([*eb.standard(), *[(eb.RAMDISK, b"d")] * 28])
    refused(many, "not 1 to 32 sections")
    measured(eb.Eif([*eb.standard(), *[(eb.RAMDISK, b"d")] * 27]))


def test_a54_trailing_and_missing_bytes() -> None:
    refused(eb.Eif(trailing=b"\x00"), "bytes after")
    whole = eb.Eif().encode()
    for length in (0, 3, 547, 548, 555, 600, len(whole) - 1):
        refused(whole[:length], "ends within")


@pytest.mark.parametrize("kind", [0, 6, 0xFFFF])
def test_a54_unknown_type(kind: int) -> None:
    refused(eb.Eif([*eb.standard(), (kind, b"")]), "unknown type")


@pytest.mark.parametrize("kind", [eb.KERNEL, eb.CMDLINE, eb.RAMDISK])
def test_a54_missing_sections(kind: int) -> None:
    refused(eb.Eif([item for item in eb.standard() if item[0] != kind]), "kernel|cmdline|ramdisk")


def test_a54_order_in_which_readers_hash_differently() -> None:
    kernel, line, metadata, init, application = eb.standard()
    for order in (
        [line, kernel, init],
        [kernel, init, line],
        [init, kernel, line],
        [kernel, line, (eb.SIGNATURE, b"\x80"), init, application],
    ):
        refused(eb.Eif([*order]), "order")
    assert measured(eb.Eif([metadata, kernel, line, init, application])).pcr0 == PCR0


def test_a54_two_signatures_or_metadata_sections() -> None:
    refused(eb.Eif([*eb.standard(), (eb.METADATA, b"{}")]), "more than one metadata")
    twice = [(eb.SIGNATURE, b"\x80")] * 2
    refused(eb.Eif([*eb.standard(), *twice]), "more than one signature")


@pytest.mark.parametrize(
    "changes",
    [{"magic": b".EIF"}, {"version": 2}, {"version": 5}, {"flags": 2}, {"section_flags": 1}],
)
def test_a54_unknown_magic_version_flags(changes: dict[str, object]) -> None:
    refused(eb.Eif(**changes), "no enclave image|version|flags")  # type: ignore[arg-type]


def test_a54_a_declared_size_is_not_believed() -> None:
    image = eb.Eif(sizes={0: 1 << 62}).encode()
    lying = image[: eb.HEAD + 4] + struct.pack(">Q", 1 << 62) + image[eb.HEAD + 12 :]
    refused(lying, "ends within section 1")
    refused(eb.Eif([*eb.standard(), (eb.SIGNATURE, bytes(32_769))]), "too large")


# A55: signatures are reported, never trusted


def test_a55_signature_over_another_pcr0() -> None:
    signer = eb.Signer()
    image = measured(eb.signed(signer.entry(b"\x01" * 48)))
    assert image.pcr0 == PCR0
    assert image.pcr8 is None
    assert image.signature is not None
    assert image.signature.problems == (
        "the signature is not this certificate's over this image's PCR0",
    )


def test_a55_the_payload_is_made_and_not_parsed() -> None:
    signer = eb.Signer()
    right = {"register_index": 0, "register_value": list(PCR0)}
    other_register = signer.cose(PCR0, index=1)
    as_bytes = signer.cose(PCR0, payload=cbor({"register_index": 0, "register_value": PCR0}))
    backwards = signer.cose(PCR0, payload=cbor(dict(reversed(right.items()))))
    longer = signer.cose(PCR0, payload=cbor(right | {"x": 0}))
    for cose in (other_register, as_bytes, backwards, longer):
        image = measured(eb.signed(eb.entry(signer.pem, cose)))
        assert image.pcr8 is None


def test_a55_signature_by_another_key_or_in_another_form() -> None:
    signer, other = eb.Signer(), eb.Signer()
    good = signer.cose(PCR0)
    for cose in (other.cose(PCR0), b"\xd2" + good, good + b"\x00", good[:-1], b"", b"\x84"):
        assert measured(eb.signed(eb.entry(signer.pem, cose))).pcr8 is None
    assert measured(eb.signed(eb.entry(signer.pem, good))).pcr8 == signer.pcr8


def test_a55_what_surrounds_a_good_signature_is_not_ignored() -> None:
    """The signature covers what was measured; a section that says something else is not one."""
    signer = eb.Signer()
    good = signer.cose(PCR0)
    said = cbor({"register_index": 0, "register_value": list(PCR0)})
    other = cbor({"register_index": 0, "register_value": [1] * 48})
    head, signature = b"\x84" + cbor(signer.algorithm), good[-98:]
    assert head + b"\xa0" + cbor(said) + signature == good
    for spoilt in (
        head + b"\xa0" + cbor(other) + signature,
        head + cbor({1: b"x"}) + cbor(said) + signature,
        b"\x84" + cbor(bytes.fromhex("a10126")) + b"\xa0" + cbor(said) + signature,
    ):
        assert measured(eb.signed(eb.entry(signer.pem, spoilt))).pcr8 is None


def test_a55_expired_certificate() -> None:
    signer = eb.Signer(days=1)
    image = eb.signed(signer.entry(PCR0))
    assert measured(image, NOW + DAY).signature.problems == ()  # type: ignore[union-attr]
    late = measured(image, NOW + DAY + 1000).signature
    assert late is not None
    assert late.problems == ("the certificate has expired",)
    early = measured(image, NOW - 61 * DAY).signature
    assert early is not None
    assert early.problems == ("the certificate is not yet valid",)


def test_a55_second_signature_and_second_certificate() -> None:
    signer, other = eb.Signer(), eb.Signer()
    image = measured(eb.signed(signer.entry(PCR0), other.entry(PCR0)))
    assert image.pcr8 == signer.pcr8
    assert image.signature is not None
    assert "more than one signature: only the first is looked at" in image.signature.problems
    chained = eb.entry(signer.pem + other.pem, signer.cose(PCR0))
    image = measured(eb.signed(chained))
    assert image.signature is not None
    assert "more than one certificate: only the first is looked at" in image.signature.problems


@pytest.mark.parametrize(
    "section",
    [
        b"\x80",
        b"\xa0",
        b"\x00",
        cbor([{}]),
        cbor([{"signing_certificate": b"x", "signature": b"y"}]),
        cbor([{"signing_certificate": [256], "signature": [1]}]),
        cbor([{"signing_certificate": ["x"], "signature": [1]}]),
        cbor([{"signing_certificate": [1, 2], "signature": [1]}]),
        cbor([eb.entry(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"")]),
    ],
)
def test_a55_what_cannot_be_read_is_reported(section: bytes) -> None:
    image = measured(eb.Eif([*eb.standard(), (eb.SIGNATURE, section)]))
    assert (image.pcr0, image.pcr8) == (PCR0, None)
    assert image.signature is not None
    assert "cannot be read" in image.signature.problems[0]
