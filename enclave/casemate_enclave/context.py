"""What goes along with one question: what ends it, and what its answer holds (SPEC 8.8.4)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from casemate import limits
from casemate_enclave.cancellation import Cancellation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate.wire import Buffer


class Unsent:
    """How many bytes of answers are made and not sent, on all connections; thread-safe.

    Answers that go into a frame with many others are not counted.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._size = 0

    @property
    def full(self) -> bool:
        """Whether no run may begin before some of them are sent."""
        return self._size >= limits.UNSENT_BYTES

    def add(self, size: int) -> None:
        """Count ``size`` bytes more."""
        with self._changed:
            self._size += size

    def free(self, size: int) -> None:
        """Count ``size`` bytes less."""
        with self._changed:
            self._size -= size
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Wait until it is not full, or for ``timeout_s`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self.full, timeout_s)


class RequestContext(Cancellation):
    """One question's; its work may be ended by ``cancel``."""

    __slots__ = ("_held", "_unsent")

    def __init__(self, unsent: Unsent) -> None:
        Cancellation.__init__(self)
        self._unsent = unsent
        self._held = 0

    def await_room(self, deadline: float) -> bool:
        """Wait while too much is unsent; False if that ends with the deadline, or nobody waits."""
        while self._unsent.full:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self.cancelled:
                return False
            self._unsent.wait(min(left_s, limits.HANG_UP_LOOK_S))
        return True

    def hold(self, message: Iterable[Buffer]) -> None:
        """Count an answer as unsent until ``release``."""
        size = sum(map(len, message))
        if size > limits.NUMBERED_MAX:
            self._held += size
            self._unsent.add(size)

    def release(self) -> None:
        """Note that the answer was sent, or never will be."""
        if self._held:
            held, self._held = self._held, 0
            self._unsent.free(held)
