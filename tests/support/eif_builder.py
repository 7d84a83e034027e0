"""Enclave image files written out by hand, whole or spoilt: independent of ``casemate``."""

from __future__ import annotations

import datetime as dt
import hashlib
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.support.nitro_pki import NOW, cbor, sig_structure, utc

if TYPE_CHECKING:
    from collections.abc import Sequence

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = 1, 2, 3, 4, 5
HEAD = 548
LINE = b"reboot=k panic=30 pci=off console=ttyS0"

Section = tuple[int, bytes]


def standard(application: bytes = b"application") -> list[Section]:
    """What a builder writes: two ramdisks, and metadata between."""
    return [
        (KERNEL, b"kernel" * 100),
        (CMDLINE, LINE),
        (METADATA, b'{"ImageName":"x"}'),
        (RAMDISK, b"init" * 50),
        (RAMDISK, application),
    ]


@dataclass
class Eif:
    """An image; ``encode`` writes what the fields say, true or not."""

    sections: list[Section] = field(default_factory=standard)
    version: int = 4
    flags: int = 0
    count: int | None = None
    offsets: dict[int, int] = field(default_factory=dict)  # what the table says instead
    sizes: dict[int, int] = field(default_factory=dict)
    section_flags: int = 0
    crc: int | None = None
    magic: bytes = b".eif"
    trailing: bytes = b""

    def encode(self) -> bytes:
        body, offsets, sizes = b"", [], []
        for kind, content in self.sections:
            offsets.append(HEAD + len(body))
            sizes.append(len(content))
            body += struct.pack(">HHQ", kind, self.section_flags, len(content)) + content
        table = []
        for listed, instead in ((offsets, self.offsets), (sizes, self.sizes)):
            row = (listed + [0] * 32)[:32]
            for index, value in instead.items():
                row[index] = value
            table.append(struct.pack(">32Q", *row))
        count = len(self.sections) if self.count is None else self.count
        head = self.magic + struct.pack(">HHQQHH", self.version, self.flags, 1 << 29, 2, 0, count)
        head += b"".join(table) + bytes(4)
        crc = zlib.crc32(head + body) if self.crc is None else self.crc
        return head + struct.pack(">I", crc) + body + self.trailing


def ext(event: bytes) -> bytes:
    return hashlib.sha384(bytes(48) + hashlib.sha384(event).digest()).digest()


def registers(sections: Sequence[Section]) -> tuple[bytes, bytes, bytes]:
    """PCR0, PCR1 and PCR2 as AWS documents them."""
    kernel, line = (dict(sections)[kind] for kind in (KERNEL, CMDLINE))
    disks = [content for kind, content in sections if kind == RAMDISK]
    return (
        ext(kernel + line + b"".join(disks)),
        ext(kernel + line + disks[0]),
        ext(b"".join(disks[1:])),
    )


@dataclass
class Signer:
    """A key with a self-signed certificate."""

    curve: ec.EllipticCurve = field(default_factory=ec.SECP384R1)
    hash: hashes.HashAlgorithm = field(default_factory=hashes.SHA384)
    algorithm: bytes = bytes.fromhex("a1013822")
    half: int = 48
    days: int = 30

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(self.curve)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "image signer")])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(utc(NOW) - dt.timedelta(days=60))
            .not_valid_after(utc(NOW) + dt.timedelta(days=self.days))
            .sign(self.key, hashes.SHA384())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def pcr8(self) -> bytes:
        return ext(self.certificate.public_bytes(Encoding.DER))

    def cose(self, pcr0: bytes, index: int = 0, payload: bytes | None = None) -> bytes:
        said = cbor({"register_index": index, "register_value": list(pcr0)})
        said = said if payload is None else payload
        message = sig_structure(said, protected=self.algorithm)
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(self.hash)))
        signature = r.to_bytes(self.half, "big") + s.to_bytes(self.half, "big")
        return cbor([self.algorithm, {}, said, signature])

    def entry(self, pcr0: bytes) -> dict[str, object]:
        return entry(self.pem, self.cose(pcr0))


def entry(pem: bytes, cose: bytes) -> dict[str, object]:
    """One signature as serde writes it: arrays of numbers, not byte strings."""
    return {"signing_certificate": list(pem), "signature": list(cose)}


def signed(*entries: dict[str, object], sections: list[Section] | None = None) -> Eif:
    return Eif([*(sections or standard()), (SIGNATURE, cbor(list(entries)))])
