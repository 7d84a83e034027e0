"""Ramdisks: cpio archives in the kernel's "newc" form, the same bytes from the same files.

Owners, times and inode numbers are not the builder's: everything belongs to root, dates from 1970
and is numbered in the order of its path. Nothing is compressed, so that no version of a compressor
has a say in a measurement.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_ALIGNED: Final = 4
_LARGEST: Final = 0xFFFFFFFF
_BUFFER: Final = 1 << 20

_DIRECTORY: Final = stat.S_IFDIR | 0o755
_LINK: Final = stat.S_IFLNK | 0o777
_FILE: Final = stat.S_IFREG | 0o644
_PROGRAM: Final = stat.S_IFREG | 0o755
_DEVICE: Final = stat.S_IFCHR | 0o600


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a ramdisk; ``path`` is relative, its content in memory or in the file ``at``."""

    path: str
    mode: int
    content: bytes = b""
    at: Path | None = None
    device: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        """The content's length in bytes."""
        return len(self.content) if self.at is None else self.at.stat().st_size


def directory(path: str) -> Entry:
    """A folder that anybody may read."""
    return Entry(path, _DIRECTORY)


def file(path: str, content: bytes, *, executable: bool = False) -> Entry:
    """A file with the given content."""
    return Entry(path, _PROGRAM if executable else _FILE, content)


def device(path: str, major: int, minor: int) -> Entry:
    """A character device, root's."""
    return Entry(path, _DEVICE, device=(major, minor))


def from_tree(root: Path) -> list[Entry]:
    """Everything in the tree at ``root``.

    Of modes only the owner's right to execute is kept, as in SPEC 4.2. Raises DevkitError for
    what is neither file, nor folder, nor link, and for names that are not UTF-8.
    """
    found = []
    for folder, folders, files in os.walk(root, onerror=_unreadable):
        for name in (*folders, *files):
            path = Path(folder, name)
            found.append(_entry(path, path.relative_to(root).as_posix()))
    return found


def write(sink: BinaryIO, entries: Iterable[Entry]) -> None:
    """Write one archive in the order of the paths; raises DevkitError for two of one name."""
    ordered = sorted(entries, key=lambda entry: entry.path.encode())
    names = [entry.path for entry in ordered]
    if len(set(names)) != len(names):
        raise DevkitError("a ramdisk would hold two files of one name")
    for number, entry in enumerate(ordered, 1):
        _write(sink, number, entry)
    _write(sink, 0, Entry(_TRAILER, 0))


def _unreadable(error: OSError) -> None:
    raise DevkitError(f"{error.filename} cannot be read: {error.strerror}")


def _entry(path: Path, name: str) -> Entry:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DevkitError(f"{name!a}: the name is not UTF-8") from None
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return Entry(name, _LINK, os.fsencode(path.readlink()))
    if stat.S_ISDIR(mode):
        return directory(name)
    if stat.S_ISREG(mode):
        return Entry(name, _PROGRAM if mode & stat.S_IXUSR else _FILE, at=path)
    raise DevkitError(f"{name}: neither a file, nor a folder, nor a link")


def _write(sink: BinaryIO, number: int, entry: Entry) -> None:
    name = entry.path.encode() + b"\x00"
    size = entry.size
    if size > _LARGEST:
        raise DevkitError(f"{entry.path}: larger than 4 GiB")
    # inode, mode, uid, gid, links, time, size, device (2), device of the node (2), name, checksum
    fields = (number, entry.mode, 0, 0, 1, 0, size, 0, 0, *entry.device, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % value for value in fields) + name
    sink.write(head + bytes(-len(head) % _ALIGNED))
    written = 0
    for piece in _content(entry):
        written += sink.write(piece)
    if written != size:
        raise DevkitError(f"{entry.path}: changed while it was read")
    sink.write(bytes(-size % _ALIGNED))


def _content(entry: Entry) -> Iterator[bytes]:
    if entry.at is None:
        yield entry.content
        return
    with entry.at.open("rb") as source:
        while piece := source.read(_BUFFER):
            yield piece
