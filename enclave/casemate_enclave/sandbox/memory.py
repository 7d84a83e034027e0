"""Keeping key buffers out of swap."""

from __future__ import annotations

import ctypes

from casemate_enclave.sandbox import syscalls


def lock_memory(buffer: bytearray | memoryview) -> bool:
    """Keep the pages of a writable ``buffer`` out of swap; False where RLIMIT_MEMLOCK is used up.

    The buffer must not be resized. Freeing it does not unlock its pages: they stay in the heap,
    locked.
    """
    size = memoryview(buffer).nbytes
    if not size:
        return True
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    try:
        syscalls.call("mlock", address, size)
    except OSError:
        return False
    return True
