"""Answers that gRPC holds because their callers do not read them (THREATS C3).

A worker hands its answer to gRPC and is free; the answer stays in memory until the caller's end of
the connection takes it. So it counts against its caller until the call has really ended. It does
not hold the caller's places: one that may have a single call at a time may begin the next as soon
as it has read an answer, and may know of that before this host does.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from casemate import limits
from casemate_host.admission import ShedError

if TYPE_CHECKING:
    import grpc


class _Answer(NamedTuple):
    until: float
    context: grpc.ServicerContext
    size: int


class Unread:
    """The unread answers of one caller; thread-safe.

    A further call is refused while there are ``most`` of them, or ``limits.UNREAD_BYTES``.
    """

    def __init__(self, concurrent: int | None = None) -> None:
        """``concurrent``: how many calls at a time the caller may have, if that is bounded."""
        calls = limits.UNREAD_ANSWERS
        if concurrent is not None:
            calls = min(calls, max(limits.UNREAD_LEAST, 2 * concurrent))
        self._most = calls
        self._lock = threading.Lock()
        self._answers: dict[int, _Answer] = {}
        self.count = 0  # how many there are
        self._size = 0

    def check(self) -> None:
        """Raise ShedError(OVERLOADED) if too much is unread for a further call."""
        if self.count >= self._most or self._size >= limits.UNREAD_BYTES:
            raise ShedError("too many answers wait to be read", limits.RETRY_S)

    def keep(self, context: grpc.ServicerContext, size: int, within_s: float) -> None:
        """Note that ``context``'s answer of ``size`` bytes is handed to gRPC."""
        answer = _Answer(time.monotonic() + within_s, context, size)
        with self._lock:
            self._answers[id(context)] = answer
            self.count += 1
            self._size += size

    def ended(self, context: grpc.ServicerContext) -> None:
        """Note that the call has ended, whether its answer was read or not."""
        with self._lock:
            answer = self._answers.pop(id(context), None)
            if answer is not None:
                self.count -= 1
                self._size -= answer.size

    def on_stream(self, count: int, size: int) -> None:
        """Note that ``count`` more answers of ``size`` bytes wait on streams of calls.

        Negative numbers: gRPC has taken so many, which it does as the client reads them.
        """
        with self._lock:
            self.count += count
            self._size += size

    def late(self, now: float) -> list[grpc.ServicerContext]:
        """Return the calls whose answers should have been read by ``now``."""
        with self._lock:
            return [answer.context for answer in self._answers.values() if answer.until <= now]
