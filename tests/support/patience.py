"""Time enough, whatever the machine: what needs some is tried with more and more of it."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")
_START_S: Final = 2.0  # of an interpreter that loads onnxruntime, on a machine with other work
_SLOWEST: Final = 6.0  # a life of 26 seconds becomes one of two and a half minutes


def patiently(
    attempt: Callable[[float], _T],
    enough: Callable[[_T], object],
    seconds: Sequence[float] = (0.3, 3.0, 30.0),
) -> _T:
    """Return the first of ``attempt``'s outcomes that is ``enough``, or the last of all.

    For what a quick machine does in a moment and a slow one may not: the moment is the test's.
    """
    for each in seconds[:-1]:
        outcome = attempt(each)
        if enough(outcome):
            return outcome
    return attempt(seconds[-1])


@functools.cache
def slowness() -> float:
    """How many times longer than usual a process takes to start here and now; 1 to 6.

    For what must last longer than a start does and has to be said before, as an enclave's life.
    """
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import onnxruntime"], check=True)
    return min(max(1.0, (time.monotonic() - begun) / _START_S), _SLOWEST)
