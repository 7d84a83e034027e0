"""The memory that loaded models may take together (SPEC 8.8.4)."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque

import numpy as np

from casemate import limits
from casemate.errors import CasemateError, Code

_MIB = limits.MIB
_LIBRARY = ctypes.CDLL(None)


def fresh_memory(size: int) -> memoryview:
    """Return ``size`` bytes that are not cleared: for what is then filled whole."""
    memory: memoryview = np.empty(size, np.uint8).data
    return memory


def give_back_memory() -> None:
    """Have the C library return what it keeps of freed memory: after a load it is much."""
    _LIBRARY.malloc_trim(0)


def cost_of_loading(contents: int) -> int:
    """Bytes that a model of so many bytes takes while it is loaded."""
    return contents * limits.MODEL_LOAD_FACTOR + limits.MODEL_OVERHEAD


def cost_of_serving(contents: int) -> int:
    """Bytes that it takes from then on."""
    return int(contents * limits.MODEL_SERVE_FACTOR) + limits.MODEL_OVERHEAD


class MemoryBudget:
    """Bytes held against a bound; thread-safe.

    What is released is not waited for: a model that was unloaded holds its bytes until the last
    run on it has ended.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._held = 0
        # A finaliser releases, wherever it happens to run: it may take no lock.
        self._released: deque[int] = deque()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        with self._lock:
            return self._settled()

    def hold(self, size: int) -> None:
        """Hold ``size`` bytes; raises CasemateError(OVERLOADED) with the numbers if they lack."""
        with self._lock:
            held = self._settled()
            if held + size > self.most:
                raise CasemateError(
                    Code.OVERLOADED,
                    f"the model needs {_mib(size)} MiB of memory and {_mib(self.most - held)} of "
                    f"{_mib(self.most)} are free: unload another first",
                )
            self._held = held + size

    def release(self, size: int) -> None:
        """Give ``size`` bytes back; safe to call from anywhere."""
        self._released.append(size)

    def _settled(self) -> int:
        while self._released:
            self._held -= self._released.popleft()
        return self._held


class Hold:
    """What one load holds of a budget until its end."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._size = 0

    def take(self, size: int) -> None:
        """Hold ``size`` bytes more; raises CasemateError(OVERLOADED)."""
        self._budget.hold(size)
        self._size += size

    def keep(self, size: int, owner: object) -> None:
        """Hold ``size`` of the bytes for as long as ``owner`` exists."""
        weakref.finalize(owner, self._budget.release, size)
        self._size -= size

    def end(self) -> None:
        """Give back what is not kept."""
        self._budget.release(self._size)
        self._size = 0


def _mib(size: int) -> int:
    return -(-size // _MIB)
