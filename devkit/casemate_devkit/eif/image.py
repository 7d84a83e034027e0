"""The image file itself: header, sections, checksum (SPEC 4.4); format version 4."""

from __future__ import annotations

import shutil
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KERNEL: Final = 1
CMDLINE: Final = 2
RAMDISK: Final = 3
SIGNATURE: Final = 4
METADATA: Final = 5

_MAGIC: Final = b".eif"
_VERSION: Final = 4
_ARCHITECTURES: Final = {"x86_64": 0, "aarch64": 1}
_HEAD: Final = struct.Struct(">4sHHQQHH32Q32QI")
_CRC: Final = struct.Struct(">I")
_SECTION: Final = struct.Struct(">HHQ")
_SECTIONS_MAX: Final = 32
_BUFFER: Final = 1 << 20
# What nitro-cli takes unless it is told otherwise; it is told (docs/guides/nitro.md).
_MEMORY: Final = 1 << 30
_PROCESSORS: Final = 2


@dataclass
class ImageWriter:
    """Writes sections one after the other; ``close`` completes header and checksum."""

    file: BinaryIO
    architecture: str
    _table: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    @contextmanager
    def open(cls, path: Path, architecture: str) -> Iterator[Self]:
        """Write a new image to ``path``, which appears whole or not at all."""
        if architecture not in _ARCHITECTURES:
            raise DevkitError(f"enclave images are for x86_64 or aarch64, not {architecture}")
        draft = path.with_name(f".{path.name}.new")
        try:
            with draft.open("w+b") as file:
                writer = cls(file, architecture)
                file.write(bytes(_HEAD.size + _CRC.size))
                yield writer
                writer.close()
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    @contextmanager
    def section(self, kind: int) -> Iterator[BinaryIO]:
        """Write the section of type ``kind`` to what this yields."""
        if len(self._table) == _SECTIONS_MAX:
            raise DevkitError(f"an enclave image has {_SECTIONS_MAX} sections at most")
        start = self.file.tell()
        self.file.write(_SECTION.pack(kind, 0, 0))
        yield self.file
        end = self.file.tell()
        size = end - start - _SECTION.size
        self.file.seek(start)
        self.file.write(_SECTION.pack(kind, 0, size))
        self.file.seek(end)
        self._table.append((start, size))

    def add(self, kind: int, content: bytes) -> None:
        """Write a whole section."""
        with self.section(kind) as sink:
            sink.write(content)

    def close(self) -> None:
        """Write the header over its place."""
        offsets, sizes = ([pair[i] for pair in self._table] for i in range(2))
        rest = [0] * (_SECTIONS_MAX - len(self._table))
        flags, count = _ARCHITECTURES[self.architecture], len(self._table)
        head = _HEAD.pack(
            *(_MAGIC, _VERSION, flags, _MEMORY, _PROCESSORS, 0, count),
            *(*offsets, *rest, *sizes, *rest, 0),
        )
        self.file.seek(len(head) + _CRC.size)
        crc = zlib.crc32(head)
        while piece := self.file.read(_BUFFER):
            crc = zlib.crc32(piece, crc)
        self.file.seek(0)
        self.file.write(head + _CRC.pack(crc))


@dataclass(frozen=True, slots=True)
class Section:
    """Where a section's content lies in its file."""

    kind: int
    offset: int
    size: int


def sections(file: BinaryIO) -> list[Section]:
    """List the sections of an image that ``measure_eif`` has accepted."""
    file.seek(0)
    numbers = _HEAD.unpack(file.read(_HEAD.size))
    count, offsets = numbers[6], numbers[7:]
    found = []
    for offset in offsets[:count]:
        file.seek(offset)
        kind, _, size = _SECTION.unpack(file.read(_SECTION.size))
        found.append(Section(kind, offset + _SECTION.size, size))
    return found


def copy(file: BinaryIO, section: Section, sink: BinaryIO) -> None:
    """Copy a section's content."""
    file.seek(section.offset)
    left = section.size
    while left:
        piece = file.read(min(left, _BUFFER))
        if not piece:
            raise DevkitError("the image ends within a section")
        sink.write(piece)
        left -= len(piece)


def add_signature(path: Path, architecture: str, signature: bytes) -> None:
    """Write ``signature`` as the last section of the unsigned image at ``path``."""
    source = path.with_name(f".{path.name}.unsigned")
    shutil.move(path, source)
    try:
        with source.open("rb") as file, ImageWriter.open(path, architecture) as writer:
            for section in sections(file):
                with writer.section(section.kind) as sink:
                    copy(file, section, sink)
            writer.add(SIGNATURE, signature)
    except BaseException:
        shutil.move(source, path)
        raise
    source.unlink()
