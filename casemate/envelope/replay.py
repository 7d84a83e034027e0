"""Sessions and replay (SPEC 6.1 to 6.4): each authenticated header runs at most once."""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from typing import Final

from casemate import limits
from casemate.errors import Code, EnvelopeError

_WINDOW: Final = (1 << limits.REPLAY_WINDOW) - 1


class _Session:
    """Highest sequence seen; bit i of ``below`` stands for ``highest - 1 - i``."""

    __slots__ = ("below", "highest", "not_after", "not_before", "owner")

    def __init__(self, not_before: int, not_after: int, owner: bytes | None) -> None:
        self.owner = owner
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

    A live session is never forgotten: when there is no room, new sessions are refused. Each owner
    has a share, and those without a name share one pool, so that nobody fills the table alone and
    room is always kept for owners (SPEC 6.8). Times in milliseconds of attested device time
    (SPEC 6.5).
    """

    def __init__(self, boot_time: int, capacity: int) -> None:
        self._boot_time = boot_time
        self._capacity = capacity
        self._sessions: dict[bytes, _Session] = {}
        self._ends: list[tuple[int, bytes]] = []
        self._held: Counter[bytes | None] = Counter()  # sessions by owner; None: the pool
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
        self,
        commitment: bytes,
        not_before: int,
        not_after: int,
        sequence: int,
        now: int,
        *,
        owner: bytes | None = None,
    ) -> None:
        """Mark one authenticated request as seen, atomically, or refuse it.

        ``owner`` is charged if the session is new. Raises EnvelopeError, and marks nothing: as
        ``check_times``, REPLAYED or OVERLOADED.
        """
        with self._lock:
            # A thread that was held up must not bring back a session whose window is gone.
            self._latest = now = max(self._latest, now)
            self.check_times(not_before, not_after, now)
            self._prune(now)
            self._session(commitment, not_before, not_after, owner).accept(sequence)

    def _prune(self, now: int) -> None:
        while self._ends and self._ends[0][0] <= now:
            owner = self._sessions.pop(heapq.heappop(self._ends)[1]).owner
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]

    def _share(self, owner: bytes | None) -> int:
        divisor = limits.STRANGERS_DIVISOR if owner is None else limits.OWNER_DIVISOR
        return max(1, self._capacity // divisor)

    def _session(
        self, commitment: bytes, not_before: int, not_after: int, owner: bytes | None
    ) -> _Session:
        session = self._sessions.get(commitment)
        if session is None:
            full = len(self._sessions) >= self._capacity
            if full or self._held[owner] >= self._share(owner):
                raise EnvelopeError(Code.OVERLOADED, "no room for another session")
            session = self._sessions[commitment] = _Session(not_before, not_after, owner)
            self._held[owner] += 1
            heapq.heappush(self._ends, (not_after, commitment))
        elif (session.not_before, session.not_after) != (not_before, not_after):
            raise EnvelopeError(Code.STALE_SESSION, "the session is live with other times")
        return session
