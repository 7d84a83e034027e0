"""Registers of an enclave image file, EIF (SPEC 4.4), computed without any tool of AWS's.

One pass, in little memory. AWS's reader walks the sections, others follow the header's table: an
image on which the two could disagree is refused, and so is whatever no builder makes. Sections are
hashed without their lengths, so bytes can move between neighbours with PCR0 unchanged: PCR0, PCR1
and PCR2 say something together only.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO, Final

from casemate import limits
from casemate.attestation.eif_signature import EifSignature, judge_signature
from casemate.errors import Code, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAGIC: Final = b".eif"

_HEADER: Final = struct.Struct(">4sHHQQHH32Q32QII")
_SECTION: Final = struct.Struct(">HHQ")
_CRC_BYTES: Final = 4
_SECTIONS_MAX: Final = 32
_VERSIONS: Final = (3, 4)  # from signatures on; 4 brought metadata
_METADATA_SINCE: Final = 4
_ARM64: Final = 1
_BUFFER: Final = 1 * limits.MIB
_AT_BOOT: Final = bytes(limits.PCR_BYTES)


class _Kind(IntEnum):
    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


# What a builder writes before what; metadata is not measured and may stand anywhere.
_RANK: Final = {_Kind.KERNEL: 0, _Kind.CMDLINE: 1, _Kind.RAMDISK: 2, _Kind.SIGNATURE: 3}


@dataclass(frozen=True, slots=True)
class EifImage:
    """What an image gives when it boots: PCR0, PCR1, PCR2, and PCR8 if it is signed.

    ``pcr8`` is None where there is no signature over this PCR0. Metadata is neither measured nor
    signed, so it is not read; ``sections`` are the names of all sections with their sizes in bytes.
    """

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    pcr8: bytes | None
    architecture: str
    sections: tuple[tuple[str, int], ...]
    signature: EifSignature | None


@dataclass(frozen=True, slots=True)
class _Header:
    version: int
    architecture: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    crc: int


class _Input:
    """The file, read once: every byte goes into the CRC."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.at = 0
        self.crc = 0

    def exactly(self, count: int, what: str) -> bytes:
        """Return the next ``count`` bytes, which are few."""
        data = b"".join(self.pieces(count, what))
        self.crc = zlib.crc32(data, self.crc)
        return data

    def pieces(self, count: int, what: str) -> Iterator[bytes]:
        """Yield the next ``count`` bytes in pieces; the CRC is the caller's."""
        while count:
            piece = self._file.read(min(count, _BUFFER))
            if not piece:
                raise _refused(f"ends within {what}")
            self.at += len(piece)
            count -= len(piece)
            yield piece

    def rest(self) -> bool:
        """Whether anything is left."""
        return bool(self._file.read(1))


class _Sections:
    """The sections read so far: what they run into, by the register it ends in."""

    def __init__(self, source: _Input) -> None:
        self._source = source
        self.image = hashlib.sha384()
        self.bootstrap = hashlib.sha384()
        self.application = hashlib.sha384()
        self.kinds: list[_Kind] = []
        self.signature: bytes | None = None

    def read(self, number: int, offset: int, size: int) -> None:
        """Read the next section, which the table says begins at ``offset``."""
        where = f"section {number}"
        _require(self._source.at == offset, f"{where} is not where the table says")
        head = self._source.exactly(_SECTION.size, f"{where}'s head")
        code, flags, length = _SECTION.unpack(head)
        _require(code in set(_Kind), f"{where} is of unknown type {code}")
        _require(flags == 0, f"{where} has unknown flags")
        _require(length == size, f"{where} is not as long as the table says")
        kind = _Kind(code)
        if kind is _Kind.SIGNATURE:
            _require(0 < length <= limits.EIF_SIGNATURE_MAX, "the signature is empty or too large")
            self.signature = self._source.exactly(length, where)
        else:
            self._hash(kind, length, where)
        self.kinds.append(kind)

    def _hash(self, kind: _Kind, length: int, where: str) -> None:
        states = [] if kind is _Kind.METADATA else [self.image, self.bootstrap]
        if kind is _Kind.RAMDISK and _Kind.RAMDISK in self.kinds:
            states = [self.image, self.application]
        for piece in self._source.pieces(length, where):
            self._source.crc = zlib.crc32(piece, self._source.crc)
            for state in states:
                state.update(piece)


def measure_eif(file: BinaryIO, *, now: int) -> EifImage:
    """Measure the image in ``file``, open in binary mode; ``now`` (ms) dates certificates.

    Raises EvidenceError (MALFORMED) for anything but a whole image as builders write it: one
    kernel, one command line, ramdisks, at most one signature. A signature that does not hold is
    reported, not raised: the registers are what they are.
    """
    source = _Input(file)
    header = _read_header(source)
    sections = _Sections(source)
    for number, (offset, size) in enumerate(zip(header.offsets, header.sizes, strict=True), 1):
        sections.read(number, offset, size)
    _require(not source.rest(), "bytes after the last section")
    _require(source.crc == header.crc, "the checksum is wrong")
    _check_order(sections.kinds, header.version)
    return _measured(header, sections, now)


def _measured(header: _Header, sections: _Sections, now: int) -> EifImage:
    pcr0 = _extended(sections.image.digest())
    signature, pcr8 = None, None
    if sections.signature is not None:
        signature = judge_signature(sections.signature, pcr0, now)
        if signature.holds and signature.certificate is not None:
            pcr8 = _extended(hashlib.sha384(signature.certificate).digest())
    names = (kind.name.lower() for kind in sections.kinds)
    return EifImage(
        pcr0=pcr0,
        pcr1=_extended(sections.bootstrap.digest()),
        pcr2=_extended(sections.application.digest()),
        pcr8=pcr8,
        architecture=header.architecture,
        sections=tuple(zip(names, header.sizes, strict=True)),
        signature=signature,
    )


def _extended(event: bytes) -> bytes:
    return hashlib.sha384(_AT_BOOT + event).digest()


def _read_header(source: _Input) -> _Header:
    raw = b"".join(source.pieces(_HEADER.size, "the header"))
    magic, version, flags, _, _, _, count, *numbers = _HEADER.unpack(raw)
    source.crc = zlib.crc32(raw[:-_CRC_BYTES])
    offsets, sizes = numbers[:_SECTIONS_MAX], numbers[_SECTIONS_MAX : 2 * _SECTIONS_MAX]
    _require(magic == MAGIC, "is no enclave image")
    _require(version in _VERSIONS, f"format version {version} is not known")
    _require(flags in {0, _ARM64}, "unknown flags")
    _require(1 <= count <= _SECTIONS_MAX, f"not 1 to {_SECTIONS_MAX} sections")
    _require(
        not any(offsets[count:] + sizes[count:]), "the table names more sections than there are"
    )
    architecture = "aarch64" if flags else "x86_64"
    return _Header(
        version, architecture, tuple(offsets[:count]), tuple(sizes[:count]), crc=numbers[-1]
    )


def _check_order(kinds: Sequence[_Kind], version: int) -> None:
    for kind in (_Kind.KERNEL, _Kind.CMDLINE):
        _require(kinds.count(kind) == 1, f"not exactly one {kind.name.lower()}")
    _require(_Kind.RAMDISK in kinds, "no ramdisk")
    for kind in (_Kind.SIGNATURE, _Kind.METADATA):
        _require(kinds.count(kind) <= 1, f"more than one {kind.name.lower()}")
    known = version >= _METADATA_SINCE or _Kind.METADATA not in kinds
    _require(known, f"metadata in format version {version}")
    ranks = [_RANK[kind] for kind in kinds if kind in _RANK]
    ordered = all(first <= second for first, second in pairwise(ranks))
    _require(ordered, "the sections are not in the order kernel, cmdline, ramdisks, signature")


def _require(holds: bool, detail: str) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        raise _refused(detail)


def _refused(detail: str) -> EvidenceError:
    return EvidenceError(Code.MALFORMED, f"enclave image: {detail}")
