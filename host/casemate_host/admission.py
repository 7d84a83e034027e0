"""Admission: what bounds the calls that one host takes on (THREATS C3)."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from casemate.hangups import Cancellable
    from casemate_host.unread import Unread
    from casemate_host.workers import Workers


class ShedError(CasemateError):
    """A call refused before anything was done for it; ``retry_s``: when to ask again."""

    def __init__(self, detail: str, retry_s: float, code: Code = Code.OVERLOADED) -> None:
        super().__init__(code, detail)
        self.retry_s = retry_s


class Slots:
    """At most ``count`` at a time; the excess is refused at once, never queued."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._count = count
        self._taken = 0

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._taken

    def take(self, count: int = 1) -> None:
        """Take ``count`` slots, to be given back with ``free``, or none.

        Raises ShedError(OVERLOADED).
        """
        with self._lock:
            if self._taken + count > self._count:
                raise ShedError("too many calls at a time", limits.RETRY_S)
            self._taken += count

    def free(self, count: int = 1) -> None:
        """Give ``count`` slots back."""
        with self._lock:
            self._taken -= count

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot within the block; raises ShedError(OVERLOADED)."""
        self.take()
        try:
            yield
        finally:
            self.free()


class TokenBucket:
    """At most ``burst`` at once and ``rate`` a second in the long run."""

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._at = clock()

    def take(self) -> None:
        """Take one token; raises ShedError(OVERLOADED), which says when there is one again."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens < 1:
                retry_s = (1 - self._tokens) / self._rate
                raise ShedError("too many calls in a short time", retry_s)
            self._tokens -= 1


class Patience:
    """Ends calls whose message does not arrive in time, or whose answer is not read in time.

    Slow senders cannot keep all workers: when a call is refused for want of one, and more than half
    of them wait for messages, whoever has waited longest gives way.
    """

    def __init__(
        self, timeout_s: float = limits.RECEIVE_TIMEOUT_S, unread: Iterable[Unread] = ()
    ) -> None:
        """``unread``: the answers to watch."""
        self.timeout_s = timeout_s
        self._unread = tuple(unread)
        self._lock = threading.Lock()
        self._waiting: dict[Workers | None, dict[int, tuple[float, Cancellable]]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="patience", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    @contextlib.contextmanager
    def waiting(self, context: Cancellable, workers: Workers | None = None) -> Iterator[None]:
        """Cancel ``context``, a call's, if the block takes longer than the time allowed.

        ``workers``: whose worker it holds meanwhile, if it is to give way.
        """
        self.begin(context, workers)
        try:
            yield
        finally:
            self.end(context, workers)

    def begin(self, context: Cancellable, workers: Workers | None = None) -> None:
        """Begin what ``end`` ends: ``waiting`` for where each microsecond counts."""
        with self._lock:
            self._waiting.setdefault(workers, {})[id(context)] = (time.monotonic(), context)

    def end(self, context: Cancellable, workers: Workers | None = None) -> None:
        """Note that ``context`` waits no longer."""
        with self._lock:
            self._waiting[workers].pop(id(context), None)

    def press(self, workers: Workers) -> None:
        """Have one call give way, as a call was refused for want of ``workers``; never blocks."""
        waiting = self._waiting.get(workers, {})
        if len(waiting) <= workers.count // 2:
            return
        with self._lock:
            since, context = next(iter(waiting.values()), (float("inf"), None))
            if context is None or time.monotonic() - since < limits.RECEIVE_GRACE_S:
                return
            waiting.pop(id(context))
        context.cancel()

    def stop(self) -> None:
        """End the watching thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(min(1.0, self.timeout_s / 4)):
            now = time.monotonic()
            with self._lock:
                late: list[Cancellable] = [
                    context
                    for waiting in self._waiting.values()
                    for since, context in waiting.values()
                    if since + self.timeout_s <= now
                ]
            for unread in self._unread:
                late += unread.late(now)
            for context in late:
                context.cancel()
