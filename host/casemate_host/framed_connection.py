"""One framed connection from its beginning to its end: whether it is at something, who ends it.

Promise: a request that this side has not begun to read when it ends the connection is told so, in
the place of an answer; one that it has begun to read is answered.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_host.framed_channel import GoneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_host.call import Call
    from casemate_host.framed_channel import FramedChannel


class FramedConnection:
    """What a worker serves, and other threads may end; thread-safe."""

    def __init__(self, channel: FramedChannel, wake: Callable[[], None]) -> None:
        """``wake``: lets calls that wait for the enclave notice that they were cancelled."""
        self.channel = channel
        self._wake = wake
        self._lock = threading.Lock()
        self._busy = False
        self._retiring = False
        self._parted = False
        self._cancelled = False
        self._call: Call | None = None

    @property
    def busy(self) -> bool:
        """Whether a request or a stream is under way."""
        return self._busy

    def next_frame(self) -> tuple[int, int, int] | None:
        """Wait for a request (see ``FramedChannel.head``); None if the connection is to end.

        Raises FrameError for a length out of bounds, GoneError, OSError.
        """
        with self._lock:
            self._busy = False
            if self._retiring:
                self._part()
        try:
            head = self.channel.head(limits.FRAMED_IDLE_S)
        except TimeoutError:
            self.retire()
            return None
        with self._lock:
            if self._parted:
                return None
            self._busy = True
        return head

    def run(self, call: Call) -> None:
        """Have ``cancel`` end ``call`` as well, until the next one."""
        self._call = call
        if self._cancelled:
            call.cancel()
            raise GoneError

    def retire(self) -> None:
        """End it as soon as nothing is under way; never blocks."""
        with self._lock:
            self._retiring = True
            if not self._busy:
                self._part()

    def cancel(self) -> None:
        """End it and what is under way on it; never blocks."""
        self._cancelled = True
        self.channel.shut()
        call = self._call
        if call is not None and call.cancel():
            self._wake()

    def _part(self) -> None:
        if not self._parted:
            self._parted = True
            self.channel.farewell(CasemateError(Code.UNAVAILABLE, "the host ends the connection"))
