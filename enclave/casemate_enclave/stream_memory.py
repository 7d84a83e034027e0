"""What the questions of all streams may hold at a time: the measured bound (SPEC 3.2, 5.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import Code, RequestError
from casemate_enclave.shares import Shares

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_enclave.shares import Owner


class StreamMemory:
    """A number of bytes that streams share, each asker with its share of them; thread-safe.

    A unit takes all it needs at once, before its memory, and what waits holds nothing of its own:
    so no two streams can wait for each other. Units of one chunk have some room beside it, so that
    they need not wait for a long one, which may take its time to arrive.
    """

    def __init__(self, capacity: int, listing: Callable[[], bool] = lambda: False) -> None:
        self._shares = Shares(capacity, listing)

    @property
    def used(self) -> int:
        """Bytes taken at present."""
        return self._shares.used

    def try_take(self, owner: Owner, size: int) -> bool:
        """Take ``size`` bytes if that needs no waiting."""
        return self._shares.try_take(owner, size)

    def take(self, owner: Owner, size: int, give_up: Callable[[], None]) -> None:
        """Take ``size`` bytes, waiting for others to free theirs.

        ``give_up`` is called while it waits, and raises to end that. Raises RequestError
        (TOO_LARGE) for what could never be taken.
        """
        if size > self._shares.capacity:
            detail = f"a unit of {size} bytes, limit {self._shares.capacity}"
            raise RequestError(Code.TOO_LARGE, detail)
        room = limits.STREAM_SHORT if size <= limits.CHUNK else 0
        self._shares.take(owner, give_up, size, room=room)

    def free(self, owner: Owner, size: int) -> None:
        """Give ``size`` bytes back."""
        if size:
            self._shares.free(owner, size)
