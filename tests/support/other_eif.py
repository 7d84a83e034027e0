"""A second reader of enclave image files, written from the format alone: nothing of ``casemate``.

Source of the format: aws-nitro-enclaves-image-format, src/defs/mod.rs and src/utils. It computes
PCR0, PCR1, PCR2 and PCR8, and takes the signature apart, with hashlib and struct. It
trusts its input: what is hostile is the business of the reader under test.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.nitro_pki import sig_structure

if TYPE_CHECKING:
    from pathlib import Path

_KERNEL, _CMDLINE, _RAMDISK, _SIGNATURE = 1, 2, 3, 4
_HEAD = 548
_COUNT_AT, _CRC_AT = 26, 544


def _extended(event: bytes) -> bytes:
    """A register that was zero, extended once by the hash of what was loaded."""
    return hashlib.sha384(bytes(48) + event).digest()


@dataclass(frozen=True)
class OtherEif:
    """What the image is, by this reader; ``certificate`` to ``halves`` only if it is signed."""

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    pcr8: bytes = bytes(48)
    certificate: bytes = b""
    protected: bytes = b""
    signed: bytes = b""
    halves: tuple[bytes, bytes] = (b"", b"")

    @property
    def registers(self) -> tuple[bytes, bytes, bytes, bytes]:
        """PCR0, PCR1, PCR2 and PCR8, which is zero without a signature."""
        return self.pcr0, self.pcr1, self.pcr2, self.pcr8

    @classmethod
    def read(cls, path: Path) -> OtherEif:
        data = path.read_bytes()
        (crc,) = struct.unpack_from(">I", data, _CRC_AT)
        assert data[:4] == b".eif"
        assert crc == zlib.crc32(data[_HEAD:], zlib.crc32(data[:_CRC_AT]))
        whole, boot, application = (hashlib.sha384() for _ in range(3))
        ramdisks, at, signature = 0, _HEAD, b""
        (count,) = struct.unpack_from(">H", data, _COUNT_AT)
        for _ in range(count):
            kind, _flags, size = struct.unpack_from(">HHQ", data, at)
            content = memoryview(data)[at + 12 : at + 12 + size]
            at += 12 + size
            if kind in {_KERNEL, _CMDLINE, _RAMDISK}:
                whole.update(content)
                # The first ramdisk is the boot's, all others are the application's.
                (application if kind == _RAMDISK and ramdisks else boot).update(content)
                ramdisks += kind == _RAMDISK
            elif kind == _SIGNATURE:
                signature = bytes(content)
        assert at == len(data)
        return cls(
            pcr0=_extended(whole.digest()),
            pcr1=_extended(boot.digest()),
            pcr2=_extended(application.digest()),
            **(_signer(signature) if signature else {}),
        )


def _decoded(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The CBOR item at ``at`` (RFC 8949, definite lengths) and where it ends."""
    major, least = data[at] >> 5, data[at] & 31
    width = {24: 1, 25: 2, 26: 4, 27: 8}.get(least, 0)
    number = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else least
    at += 1 + width
    if major == 0:
        return number, at
    if major in {2, 3}:
        text = data[at : at + number]
        return (text.decode() if major == 3 else text), at + number
    assert major in {4, 5}
    items = []
    for _ in range(number * (major - 3)):
        item, at = _decoded(data, at)
        items.append(item)
    return (items if major == 4 else dict(zip(items[::2], items[1::2], strict=True))), at


def _signer(section: bytes) -> dict[str, Any]:
    first = _decoded(section)[0][0]
    pem, cose = (bytes(first[name]) for name in ("signing_certificate", "signature"))
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    protected, unprotected, payload, signature = _decoded(cose)[0]
    assert unprotected == {}
    half = len(signature) // 2
    return {
        "pcr8": _extended(hashlib.sha384(der).digest()),
        "certificate": der,
        "protected": protected,
        "signed": sig_structure(payload, protected=protected),
        "halves": (signature[:half], signature[half:]),
    }
