"""Time enough, whatever the machine: what needs some is tried with more and more of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")


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
