"""A bound on how many do something at once that nobody has to wait for long.

More large requests at once than there are processors gain nothing: their threads wake each other
for the interpreter's lock, and what one has in the caches another one takes out again. But what
waits for something else, a slow model or a sender that stalls, is not to keep others out.
"""

from __future__ import annotations

import threading
import time
from collections import deque


class Place:
    """One of the places; whoever has entered gives it back to ``SoftLimit.leave``."""

    __slots__ = ("_roused", "_wake")

    def __init__(self) -> None:
        self._wake = threading.Lock()
        self._wake.acquire()
        self._roused = False

    def rouse(self) -> None:
        """Have whoever waits look again; the limit's lock is held."""
        if not self._roused:
            self._roused = True
            self._wake.release()

    def wait(self, within_s: float) -> None:
        """Wait until roused, so many seconds at most."""
        if within_s > 0 and self._wake.acquire(timeout=within_s):
            self._roused = False


class SoftLimit:
    """``most`` places; thread-safe.

    A place counts for ``hold_s`` seconds at most. Whoever comes takes a free one, and the n-th that
    waits goes on after n / ``most`` times ``hold_s`` seconds, whatever others do.
    """

    def __init__(self, most: int, hold_s: float) -> None:
        self._most = most
        self._hold_s = hold_s
        self._lock = threading.Lock()
        self._until: dict[Place, float] = {}  # of what counts, the oldest first; time.monotonic
        self._waiting: deque[Place] = deque()

    def enter(self) -> Place:
        """Wait for a place, and return it."""
        place = Place()
        with self._lock:
            now = time.monotonic()
            if self._has_room(now):
                self._until[place] = now + self._hold_s
                return place
            end = now + (1 + len(self._waiting) // self._most) * self._hold_s
            self._waiting.append(place)
        while True:
            place.wait(end - now)
            with self._lock:
                now = time.monotonic()
                if now < end and not self._has_room(now):
                    continue
                self._waiting.remove(place)
                self._until[place] = now + self._hold_s
                self._rouse_next(now)
                return place

    def leave(self, place: Place) -> None:
        """Give a place back, whether it still counts or not."""
        with self._lock:
            self._until.pop(place, None)
            if self._waiting:
                self._rouse_next(time.monotonic())

    def _rouse_next(self, now: float) -> None:
        if self._waiting and self._has_room(now):
            self._waiting[0].rouse()

    def _has_room(self, now: float) -> bool:
        for place, until in list(self._until.items()):
            if until > now:
                break
            del self._until[place]
        return len(self._until) < self._most
