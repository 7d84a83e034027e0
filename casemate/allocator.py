"""How the C library keeps freed memory, in processes that serve large messages."""

from __future__ import annotations

import ctypes
import functools
from typing import Final

from casemate import limits

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)
_LIBRARY: Final = ctypes.CDLL(None)


def keep_freed_memory() -> None:
    """Have what a message took be there for the next one, up to a bound.

    By itself the C library gives large blocks back to the kernel, which clears each page anew when
    it is touched again: for a message of some hundred kilobytes that is a fifth of its cost. Called
    before a process has threads; without effect where the C library has no ``mallopt``.
    """
    mallopt = getattr(_LIBRARY, "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_ARENA_MAX, limits.ARENAS_MAX)
    mallopt(_M_MMAP_THRESHOLD, limits.ARENA_BLOCK_MAX)
    mallopt(_M_TRIM_THRESHOLD, limits.ARENA_KEPT)


@functools.cache
def expect_large_messages() -> None:
    """Have the C library keep what large messages took, in a process that is not ours to tune.

    glibc raises its own bounds to the largest block that was freed, for such blocks come and go
    (mallopt(3), M_MMAP_THRESHOLD); without this it learns too little from messages that are alive
    two at a time. One block is taken, never touched and freed, once for a process. Whoever has set
    the bounds themselves keeps them, and other C libraries do as they did.
    """
    bytes(limits.ARENA_EXPECTED)
