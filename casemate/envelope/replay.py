"""Sessions and replay (SPEC 6.1 to 6.4): each authenticated header runs at most once."""

from __future__ import annotations

import heapq
import threading
from typing import Final

from casemate import limits
from casemate.errors import Code, EnvelopeError

_WINDOW: Final = (1 << limits.REPLAY_WINDOW) - 1


class _Session:
    """Highest sequence seen; bit i of ``below`` stands for ``highest - 1 - i``."""

    __slots__ = ("below", "highest", "not_after", "not_before")

    def __init__(self, not_before: int, not_after: int) -> None:
        self.not_before = not_before
        self.not_after = not_after
        self.highest = -1
        self.below = 0

    def accept(self, sequence: int) -> None:
        ahead = sequence - self.highest
        if ahead > 0:
            # The old highest moves into the window, `ahead` places down.
            seen = (self.below << 1) | (self.highest >= 0)
            self.below = (seen << (ahead - 1)) & _WINDOW if ahead <= limits.REPLAY_WINDOW else 0
            self.highest = sequence
            return
        bit = 1 << (-ahead - 1) if ahead else 0
        if not bit or -ahead > limits.REPLAY_WINDOW or self.below & bit:
            raise EnvelopeError(
                Code.REPLAYED, "this request was seen before, or is too old to tell"
            )
        self.below |= bit


class ReplayTable:
    """Every live session's window, bounded; safe to use from several threads.

    A live session is never forgotten: when the table is full, new sessions are refused. Times in
    milliseconds of attested device time (SPEC 6.5).
    """

    def __init__(self, boot_time: int, capacity: int) -> None:
        self._boot_time = boot_time
        self._capacity = capacity
        self._sessions: dict[bytes, _Session] = {}
        self._ends: list[tuple[int, bytes]] = []
        self._latest = boot_time
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def knows(self, commitment: bytes) -> bool:
        """Whether there is such a session."""
        return commitment in self._sessions

    def live(self, now: int) -> int:
        """How many sessions have not ended."""
        with self._lock:
            self._latest = now = max(self._latest, now)
            self._prune(now)
            return len(self._sessions)

    def check_times(self, not_before: int, not_after: int, now: int) -> None:
        """Refuse a session outside its time; raises EnvelopeError.

        STALE_SESSION before boot or in the future, EXPIRED after its end, MALFORMED if too long.
        """
        if not self._boot_time <= not_before <= now:
            raise EnvelopeError(
                Code.STALE_SESSION, "the session starts before boot or in the future"
            )
        if now >= not_after:
            raise EnvelopeError(Code.EXPIRED, "the session has ended")
        if not_after - not_before > limits.SESSION_SPAN_MAX:
            raise EnvelopeError(Code.MALFORMED, "the session spans more than an hour")

    def accept(
        self, commitment: bytes, not_before: int, not_after: int, sequence: int, now: int
    ) -> None:
        """Mark one authenticated request as seen, atomically, or refuse it.

        Raises EnvelopeError, and marks nothing: as ``check_times``, REPLAYED or OVERLOADED.
        """
        with self._lock:
            # A thread that was held up must not bring back a session whose window is gone.
            self._latest = now = max(self._latest, now)
            self.check_times(not_before, not_after, now)
            self._prune(now)
            self._session(commitment, not_before, not_after).accept(sequence)

    def _prune(self, now: int) -> None:
        while self._ends and self._ends[0][0] <= now:
            del self._sessions[heapq.heappop(self._ends)[1]]

    def _session(self, commitment: bytes, not_before: int, not_after: int) -> _Session:
        session = self._sessions.get(commitment)
        if session is None:
            if len(self._sessions) >= self._capacity:
                raise EnvelopeError(Code.OVERLOADED, "no room for another session")
            session = self._sessions[commitment] = _Session(not_before, not_after)
            heapq.heappush(self._ends, (not_after, commitment))
        elif (session.not_before, session.not_after) != (not_before, not_after):
            raise EnvelopeError(Code.STALE_SESSION, "the session is live with other times")
        return session
