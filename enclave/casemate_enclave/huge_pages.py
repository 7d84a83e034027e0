"""Memory for a load: in huge pages where those are quick to have, and found while others work."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.allocator import keep_freed_memory
from casemate_enclave.memory import give_back_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIBRARY = ctypes.CDLL(None)
_LIBRARY.malloc.restype = ctypes.c_void_p
_LIBRARY.malloc.argtypes = [ctypes.c_size_t]
_LIBRARY.free.argtypes = [ctypes.c_void_p]
_LIBRARY.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)
_MMAP_MAX, _NEVER = 65_536, -1  # what the C library begins with; no bound
_MADV_HUGEPAGE, _MADV_NOHUGEPAGE, _MADV_POPULATE_WRITE = 14, 15, 23
_HUGE_PAGE: Final = 2 * limits.MIB
# As many small pages take so long. A huge one takes 0.2 ms; where a machine that holds this one has
# to find the memory first, 2 to 7 ms.
_SMALL_S: Final = 0.0008


@contextmanager
def huge_pages(size: int, soon: int) -> Iterator[None]:
    """Have what this thread allocates meanwhile lie in huge pages, as far as ``size`` bytes go.

    A load touches each page of its memory once, and for small pages the kernel's part in that is
    most of the load. So a thread has the kernel find the first ``soon`` bytes meanwhile, and small
    pages for the rest if huge ones turn out to be slow. Where the kernel has no huge pages, or
    cannot be asked for memory, it is found when it is touched. For a process that has one thread
    yet: how the C library allocates is changed for all.
    """
    _LIBRARY.mallopt(_M_MMAP_MAX, 0)  # everything from one region, which is not given back
    _LIBRARY.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    first, end = _region(size)
    supply = _Supply(range(first, min(end, first + soon) - _HUGE_PAGE + 1, _HUGE_PAGE), end)
    try:
        yield
    finally:
        supply.stop()
        # Runs are quicker with huge pages, too: the kernel may join small ones when it has time.
        _advise(first, end, _MADV_HUGEPAGE)
        _LIBRARY.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        keep_freed_memory()
        give_back_memory()


def _region(size: int) -> tuple[int, int]:
    """Return where whole huge pages begin and end among the ``size`` bytes allocated next."""
    if not (region := _LIBRARY.malloc(size)):
        return 0, 0
    first = -(-region // _HUGE_PAGE) * _HUGE_PAGE
    end = (region + size) // _HUGE_PAGE * _HUGE_PAGE
    _advise(first, end, _MADV_HUGEPAGE)
    _LIBRARY.free(region)
    return first, end


def _advise(first: int, end: int, advice: int) -> bool:
    """Whether the kernel took the advice for a range, if there is any."""
    return end > first and not _LIBRARY.madvise(first, end - first, advice)


class _Supply:
    """Has the kernel find the huge pages at ``places``, on a thread, until ``stop``.

    Up to ``end`` the kernel has been told that they shall be huge.
    """

    def __init__(self, places: range, end: int) -> None:
        self._places = places
        self._end = end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="memory")
        if places:
            with contextlib.suppress(RuntimeError):  # no thread to be had
                self._thread.start()

    def stop(self) -> None:
        """Return when nothing is asked for any more."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        lost, small = 0.0, False
        for left, at in zip(reversed(range(len(self._places))), self._places, strict=True):
            begun = time.thread_time()
            found = _advise(at, at + _HUGE_PAGE, _MADV_POPULATE_WRITE)
            if self._stopped.is_set() or not found:
                return
            lost += max(0.0, time.thread_time() - begun - _SMALL_S)
            # By then as much is lost as small pages will cost for what is left.
            if not small and lost > left * _SMALL_S:
                small = _advise(at, self._end, _MADV_NOHUGEPAGE)
