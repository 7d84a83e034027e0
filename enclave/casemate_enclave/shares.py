"""What many askers share, so that none of them has all of it (SPEC 6.9)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Callable


class Owner(NamedTuple):
    """Whose something is: a caller whom a loaded model lists, or else a session."""

    key: bytes
    listed: bool


class _Waiter:
    __slots__ = ("granted", "owner", "room", "size", "wake")

    def __init__(self, owner: Owner, size: int, room: int) -> None:
        self.owner = owner
        self.size = size
        self.room = room
        self.granted = False
        self.wake = threading.Lock()
        self.wake.acquire()


class Shares:
    """A capacity of which each owner has a share; thread-safe.

    As long as more than a quarter is left everybody may take of it. That quarter is for those who
    hold no more than an eighth of the whole, and, while ``listing`` says that there are such, for
    callers who are listed. What is larger than the rest is taken while nobody holds anything.
    """

    def __init__(self, capacity: int, listing: Callable[[], bool] = lambda: False) -> None:
        self.capacity = capacity
        self._listing = listing
        self._share = max(1, capacity // limits.SHARE_DIVISOR)
        self._common = capacity - capacity // limits.RESERVE_DIVISOR
        self._lock = threading.Lock()
        self._used = 0
        self._held: dict[bytes, int] = {}
        self._waiters: list[_Waiter] = []

    @property
    def used(self) -> int:
        """What is taken at present."""
        return self._used

    def try_take(self, owner: Owner, size: int = 1) -> bool:
        """Take ``size`` if it may be taken now."""
        with self._lock:
            return self._take(owner, size, 0)

    def take(
        self, owner: Owner, give_up: Callable[[], None], size: int = 1, *, room: int = 0
    ) -> None:
        """Take ``size``, waiting for others to give theirs back.

        ``give_up`` is called now and then, and raises to end the waiting; ``room``: what may be
        taken beyond the capacity.
        """
        with self._lock:
            if self._take(owner, size, room):
                return
            waiter = _Waiter(owner, size, room)
            self._waiters.append(waiter)
        try:
            while not waiter.wake.acquire(timeout=limits.STREAM_LOOK_S):
                give_up()
        except BaseException:
            self._leave(waiter)
            raise

    def free(self, owner: Owner, size: int = 1) -> None:
        """Give ``size`` back."""
        with self._lock:
            self._used -= size
            left = self._held[owner.key] - size
            if left:
                self._held[owner.key] = left
            else:
                del self._held[owner.key]
            self._grant()

    def _take(self, owner: Owner, size: int, room: int) -> bool:
        if not self._fits(owner, size, room):
            return False
        self._used += size
        self._held[owner.key] = self._held.get(owner.key, 0) + size
        return True

    def _fits(self, owner: Owner, size: int, room: int) -> bool:
        used = self._used + size
        if used > self.capacity + room:
            return False
        if used <= self._common + room or not self._used:
            return True
        reserved = not owner.listed and self._listing()
        return not reserved and self._held.get(owner.key, 0) + size <= self._share

    def _grant(self) -> None:
        """Give what there is to those who wait: whoever holds least is first."""
        while self._waiters:
            fitting = [w for w in self._waiters if self._fits(w.owner, w.size, w.room)]
            if not fitting:
                return
            waiter = min(fitting, key=lambda w: self._held.get(w.owner.key, 0))
            self._take(waiter.owner, waiter.size, waiter.room)
            self._waiters.remove(waiter)
            waiter.granted = True
            waiter.wake.release()

    def _leave(self, waiter: _Waiter) -> None:
        with self._lock:
            if not waiter.granted:
                self._waiters.remove(waiter)
                return
        self.free(waiter.owner, waiter.size)
