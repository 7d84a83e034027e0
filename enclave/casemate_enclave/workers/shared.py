"""Memory that two processes map: a model's contents, and tensors too large for a message.

Promise: none of it changes its size once it exists, so no process can make another one's mapping
fault; and a model's contents never change at all (``casemate.sealed_model.memory_file``).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from casemate import limits
from casemate.sealed_model.memory_file import memory_file

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_FUTURE_WRITE: Final = 0x10  # F_SEAL_FUTURE_WRITE
_BEYOND: Final = 64  # the alignment of tensors


class Room:
    """Shared memory for the tensors of one connection; its bytes are ``memory``.

    Unmapped when nothing refers to it any more, arrays in it included.
    """

    __slots__ = ("memory", "size")

    def __init__(self, descriptor: int, size: int, *, writable: bool) -> None:
        """Map what ``make_room`` made; the descriptor may be closed then."""
        self.size = size
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.memory = memoryview(mmap.mmap(descriptor, size, mmap.MAP_SHARED, protection))


def make_room(size: int, *, answers: bool) -> tuple[Room, int]:
    """Return shared memory of at least ``size`` bytes, and its descriptor, for the other side.

    The other side may write to it if it is for ``answers``, and only look at it otherwise, from
    Linux 5.1 on.
    """
    rounded = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    descriptor = memory_file(rounded)
    try:
        room = Room(descriptor, rounded, writable=not answers)
        if not answers:
            _forbid_writing(descriptor)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE)
    except BaseException:
        os.close(descriptor)
        raise
    return room, descriptor


def _forbid_writing(descriptor: int) -> None:
    """Allow no mapping that can be written to, and no call that writes, from now on."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _FUTURE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


# Memory that the enclave fills and may lend: a message too large to exist twice.


class Loan(NamedTuple):
    """Where an array lies in memory that can be lent."""

    descriptor: int
    size: int
    start: int


_lendable: dict[int, tuple[int, int]] = {}  # address -> size, descriptor


def lendable_memory(size: int) -> memoryview:
    """Return ``size`` bytes which, if they are many, a worker can look at without a copy."""
    if size <= limits.WORKER_ROOM_KEPT:
        return memoryview(bytearray(size))
    # A worker may look further than the last byte: to where a next tensor would begin.
    room, descriptor = make_room(size + _BEYOND, answers=False)
    owner = np.frombuffer(room.memory, np.uint8)
    address = owner.__array_interface__["data"][0]
    # Forgotten before it is unmapped, so that no other memory is ever taken for it.
    weakref.finalize(owner, _forget, address)
    _lendable[address] = room.size, descriptor
    return memoryview(owner)[:size]  # type: ignore[arg-type]  # numpy's stubs lack the protocol


def _forget(address: int) -> None:
    _, descriptor = _lendable.pop(address)
    os.close(descriptor)


def loan(array: Array) -> Loan | None:
    """Return where ``array`` lies, if that can be lent as it is."""
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned) or array.nbytes <= limits.WORKER_ROOM_KEPT // 2:
        return None
    address = array.__array_interface__["data"][0]
    for begin, (size, descriptor) in list(_lendable.items()):
        if begin <= address < begin + size:
            return Loan(descriptor, size, address - begin)
    return None
