"""One call's claim on a worker: its deadline, and what to cut when its caller goes away."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Protocol

from casemate import limits
from casemate.errors import Code, FrameError
from casemate_host.tracing import NO_TRACE

if TYPE_CHECKING:
    from casemate_host.tracing import Trace
    from casemate_host.unread import Unread

_CENTURY_S = 3.2e9


class Cuttable(Protocol):
    """What a worker waits on: a socket, or what behaves as one."""

    def shutdown(self, how: int, /) -> None:
        """Let the worker go on."""
        ...


class Call:
    """A deadline and a cancellation, shared by the worker and the thread that hears of the caller.

    ``cancel`` shuts the socket that the worker is blocked on, and no other: a socket that was
    detached belongs to the pool, perhaps to another call.
    """

    def __init__(
        self,
        budget_s: float | None = None,
        default_s: float = limits.FRAME_BUDGET_DEFAULT / 1000,
        trace: Trace = NO_TRACE,
    ) -> None:
        """``budget_s``: seconds until the deadline, at most CALL_BUDGET_MAX_S.

        None, or what gRPC says for a call without a deadline (centuries), means ``default_s``
        (SPEC 9.2).
        """
        if budget_s is None or budget_s > _CENTURY_S:
            budget_s = default_s
        self.trace = trace
        self.caller: str | None = None
        self.unread: Unread | None = None
        self._deadline = time.monotonic() + min(budget_s, limits.CALL_BUDGET_MAX_S)
        self._lock = threading.Lock()
        self._channel: Cuttable | None = None
        self._cancelled = False
        self._finished = False

    def of(self, caller: str, unread: Unread | None = None) -> None:
        """Note who calls, by the name that the host's configuration gives it.

        ``unread``: where the call's answer counts until it has been read.
        """
        self.caller = caller
        self.unread = unread
        self.trace.caller(caller)

    @property
    def cancelled(self) -> bool:
        """Whether the caller went away."""
        return self._cancelled

    def remaining_s(self) -> float:
        """Return the seconds left, above zero; raises FrameError(DEADLINE_EXCEEDED)."""
        remaining = self._deadline - time.monotonic()
        if self._cancelled:
            raise FrameError(Code.DEADLINE_EXCEEDED, "the caller went away")
        if remaining <= 0:
            raise FrameError(Code.DEADLINE_EXCEEDED, "the deadline passed")
        return remaining

    def attach(self, channel: Cuttable) -> None:
        """Let ``cancel`` shut ``channel`` from now on; raises if the caller has already gone."""
        with self._lock:
            self.remaining_s()
            self._channel = channel

    def detach(self) -> None:
        """Take the channel back, before it is pooled or closed."""
        with self._lock:
            self._channel = None

    def finish(self) -> bool:
        """Note that the worker is done: from now on ``cancel`` does nothing; False if it came."""
        with self._lock:
            self._finished = True
            return not self._cancelled

    def cancel(self) -> bool:
        """Note that the caller went away, and wake the worker; False if the call was finished."""
        with self._lock:
            if self._finished:
                return False
            self._cancelled = True
            if self._channel is not None:
                with contextlib.suppress(OSError):
                    self._channel.shutdown(socket.SHUT_RDWR)
            return True
