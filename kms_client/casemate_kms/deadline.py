"""The time a key release may still take, known to everything that waits below it.

botocore calls the transport and the transport calls http.client, neither of which hands a deadline
on; a time-out for each read alone would let a host that drips bytes hold a call for ever.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

_deadline: ContextVar[float | None] = ContextVar("casemate_kms_deadline", default=None)


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Bound every wait in the block by ``deadline`` (``time.monotonic`` seconds)."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def remaining() -> float:
    """Return the seconds left, above zero; raises TimeoutError when there are none.

    Outside ``until`` that is the time of one attempt.
    """
    deadline = _deadline.get()
    if deadline is None:
        return limits.KMS_TIMEOUT_S
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left
