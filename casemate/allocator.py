"""How the C library keeps freed memory, in processes that serve large messages."""

from __future__ import annotations

import ctypes
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
