"""Registers of enclave images (SPEC 4.4), against an independent builder."""

from __future__ import annotations

import io
import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from casemate.attestation.eif import EifImage, measure_eif
from casemate.errors import Code, EvidenceError
from tests.support import eif_builder as eb
from tests.support.nitro_pki import NOW

if TYPE_CHECKING:
    from collections.abc import Iterator

# What the second ramdisk of an image without one gives: PCR2 of every such image, everywhere.
EMPTY_PCR2 = (
    "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c"
    "10edb30948c90ba67310f7b964fc500a"
)


def measured(data: bytes) -> EifImage:
    return measure_eif(io.BytesIO(data), now=NOW)


def registers(image: EifImage) -> tuple[bytes, bytes, bytes]:
    return image.pcr0, image.pcr1, image.pcr2


def refused(data: bytes) -> str:
    with pytest.raises(EvidenceError) as caught:
        measured(data)
    assert caught.value.code == Code.MALFORMED
    return caught.value.detail


def test_registers_are_those_of_the_sections() -> None:
    image = measured(eb.Eif().encode())
    assert registers(image) == eb.registers(eb.standard())
    assert (image.pcr8, image.signature, image.architecture) == (None, None, "x86_64")
    assert image.sections == (
        ("kernel", 600),
        ("cmdline", len(eb.LINE)),
        ("metadata", 17),
        ("ramdisk", 200),
        ("ramdisk", 11),
    )


@given(st.binary(max_size=50), st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_any_contents(kernel: bytes, disks: list[bytes]) -> None:
    sections = [(eb.KERNEL, kernel), (eb.CMDLINE, eb.LINE)]
    sections += [(eb.RAMDISK, disk) for disk in disks]
    assert registers(measured(eb.Eif(sections).encode())) == eb.registers(sections)


def test_one_ramdisk_leaves_pcr2_at_a_constant() -> None:
    sections = eb.standard()[:4]
    assert measured(eb.Eif(sections).encode()).pcr2.hex() == EMPTY_PCR2


def test_metadata_is_not_measured() -> None:
    without = [section for section in eb.standard() if section[0] != eb.METADATA]
    first, second = (measured(eb.Eif(sections).encode()) for sections in (without, eb.standard()))
    assert registers(first) == registers(second)


def test_architecture_and_older_format() -> None:
    assert measured(eb.Eif(flags=1).encode()).architecture == "aarch64"
    without = [section for section in eb.standard() if section[0] != eb.METADATA]
    measured(eb.Eif(without, version=3).encode())
    assert "metadata in format version 3" in refused(eb.Eif(version=3).encode())


def moved(*contents: bytes) -> tuple[bytes, bytes, bytes]:
    kinds = (eb.KERNEL, eb.CMDLINE, eb.RAMDISK, eb.RAMDISK)
    return registers(measured(eb.Eif(list(zip(kinds, contents, strict=True))).encode()))


def test_bytes_that_move_between_sections() -> None:
    """Why PCR0, PCR1 and PCR2 are compared together, and never one of them alone."""
    before = moved(b"kernel", b"line", b"init", b"application")
    into_init = moved(b"kernel", b"line", b"initapp", b"lication")
    assert into_init[0] == before[0]
    assert into_init[1] != before[1]
    assert into_init[2] != before[2]
    # The line's end may become the first ramdisk's beginning without any trace.
    assert moved(b"kernel", b"li", b"neinit", b"application") == before


class Zeros(io.RawIOBase):
    """A file of any size without its bytes in memory."""

    def __init__(self, head: bytes, zeros: int, tail: bytes = b"") -> None:
        self._pieces = self._cut(head, zeros, tail)
        self._left = b""

    @staticmethod
    def _cut(head: bytes, zeros: int, tail: bytes) -> Iterator[bytes]:
        yield head
        block = bytes(1 << 20)
        for _ in range(zeros >> 20):
            yield block
        yield tail

    def read(self, size: int = -1) -> bytes:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left = piece
        data, self._left = self._left[:size], self._left[size:]
        return data


def test_a_large_image_is_measured_in_little_memory() -> None:
    """Checked by its end: the checksum of zeros is wrong, which is found after all was read."""
    size = 64 << 20
    sections = [(eb.KERNEL, b"k"), (eb.CMDLINE, b""), (eb.RAMDISK, b"")]
    data = eb.Eif(sections, sizes={2: size}).encode()
    head = data[:-8] + struct.pack(">Q", size)
    tracemalloc.start()
    try:
        with pytest.raises(EvidenceError, match="checksum"):
            measure_eif(Zeros(head, size), now=NOW)  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


# Signatures


def test_a_signature_gives_pcr8() -> None:
    signer = eb.Signer()
    image = measured(eb.signed(signer.entry(eb.registers(eb.standard())[0])).encode())
    assert registers(image) == eb.registers(eb.standard())
    assert image.pcr8 == signer.pcr8
    assert image.signature is not None
    assert image.signature.holds
    assert image.signature.problems == ()
    assert image.signature.subject == "CN=image signer"


@pytest.mark.parametrize(
    ("curve", "hash_algorithm", "protected", "half"),
    [
        (ec.SECP256R1(), hashes.SHA256(), "a10126", 32),
        (ec.SECP521R1(), hashes.SHA512(), "a1013823", 66),
    ],
)
def test_other_curves(
    curve: ec.EllipticCurve, hash_algorithm: hashes.HashAlgorithm, protected: str, half: int
) -> None:
    signer = eb.Signer(curve, hash_algorithm, bytes.fromhex(protected), half)
    image = measured(eb.signed(signer.entry(eb.registers(eb.standard())[0])).encode())
    assert image.pcr8 == signer.pcr8


@given(st.binary(max_size=3000))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    refused(data)
    refused(b".eif" + data)


@given(st.data())
def test_any_flipped_byte_is_refused(data: st.DataObject) -> None:
    image = eb.Eif().encode()
    at = data.draw(st.integers(0, len(image) - 1))
    refused(image[:at] + bytes([image[at] ^ data.draw(st.integers(1, 255))]) + image[at + 1 :])
