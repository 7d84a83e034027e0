"""Memory that two processes map: a model's contents, and tensors too large for a message.

Promise: none of it changes its size once it exists, so no process can make another one's mapping
fault; and what is sealed as contents never changes at all.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate.wire import Buffer

_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_ALL = _SIZE | fcntl.F_SEAL_WRITE
_PIECE = 64 * limits.MIB  # of one write; the kernel takes no more than 2 GiB at a time


def _memory_file() -> int:
    return os.memfd_create("", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def seal_contents(pieces: Iterable[Buffer]) -> int:
    """Return the descriptor of a memory file that holds ``pieces`` and never changes."""
    descriptor = _memory_file()
    try:
        for piece in pieces:
            _write(descriptor, memoryview(piece).cast("B"))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _ALL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view[:_PIECE]) :]


class Room:
    """Shared memory for the tensors of one connection; its bytes are ``memory``.

    Unmapped when nothing refers to it any more, arrays in it included.
    """

    __slots__ = ("memory", "size")

    def __init__(self, descriptor: int, size: int) -> None:
        """Map what ``make_room`` made; the descriptor may be closed then."""
        self.size = size
        self.memory = memoryview(mmap.mmap(descriptor, size))


def make_room(size: int) -> tuple[Room, int]:
    """Return shared memory of at least ``size`` bytes, and its descriptor, for the other side."""
    rounded = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    descriptor = _memory_file()
    try:
        os.ftruncate(descriptor, rounded)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE)
        return Room(descriptor, rounded), descriptor
    except BaseException:
        os.close(descriptor)
        raise
