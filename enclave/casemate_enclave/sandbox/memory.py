"""Where keys that live longer than one request are held: out of swap, and erased when given up."""

from __future__ import annotations

import ctypes
import mmap
from typing import final

from casemate.envelope.guard import Guarded
from casemate_enclave.sandbox import syscalls


def lock_memory(buffer: bytearray | mmap.mmap) -> bool:
    """Keep the pages of a writable ``buffer`` out of swap; False where RLIMIT_MEMLOCK is used up.

    The buffer must not be resized. Freeing it does not unlock its pages: they stay in the heap,
    locked.
    """
    size = len(buffer)
    if not size:
        return True
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    try:
        syscalls.call("mlock", address, size)
    except OSError:
        return False
    return True


@final
class LockedSlots(Guarded):
    """A fixed number of secrets in pages of their own, locked together once.

    One mapping and not a buffer for each secret: those would lie all over the heap, and lock and
    unlock its pages for each other. Not thread-safe.
    """

    __slots__ = ("_free", "_memory", "_size", "locked")

    def __init__(self, count: int, size: int) -> None:
        """Take room for ``count`` secrets of ``size`` bytes; ``locked`` says if it cannot swap."""
        self._size = size
        self._memory = mmap.mmap(-1, count * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.locked = lock_memory(self._memory)
        self._free = list(range(count))

    def put(self, secret: bytes) -> int:
        """Store ``secret`` and return its slot; ValueError for a wrong size, IndexError if full."""
        if len(secret) != self._size:
            raise ValueError("a secret of another size")
        slot = self._free.pop()
        self._memory[self._place(slot)] = secret
        return slot

    def get(self, slot: int) -> bytes:
        """Return a copy: the slot may be erased while the caller still uses the secret."""
        at = slot * self._size
        return self._memory[at : at + self._size]

    def erase(self, slot: int) -> None:
        """Overwrite the secret and give the slot up."""
        self._memory[self._place(slot)] = bytes(self._size)
        self._free.append(slot)

    def _place(self, slot: int) -> slice:
        return slice(slot * self._size, (slot + 1) * self._size)
