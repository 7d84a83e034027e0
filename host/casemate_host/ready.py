"""Answers of a stream that its client has yet to take; they count against its caller (C3)."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate_host.call_messages import Entry
    from casemate_host.unread import Unread


class ReadyAnswers:
    """Entries in the order in which they came; thread-safe."""

    def __init__(self, unread: Unread) -> None:
        """``unread``: the caller's."""
        self._unread = unread
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep entries."""
        count, size = _counted(entries)
        with self._lock:
            self._entries += entries
            self.size += size
        if count:
            self._unread.on_stream(count, size)

    def take(self) -> list[Entry]:
        """Return as many as fit into one message; they count until ``taken``."""
        with self._lock:
            if self.size < limits.CALL_STREAM_MESSAGE:
                entries, self.size = list(self._entries), 0
                self._entries.clear()
                return entries
            entries, size = [], 0
            while self._entries and size < limits.CALL_STREAM_MESSAGE:
                entries.append(self._entries.popleft())
                size += len(entries[-1][1])
            self.size -= size
            return entries

    def taken(self, entries: Sequence[Entry]) -> None:
        """Note that gRPC has passed ``entries`` on, or that nobody will take them."""
        count, size = _counted(entries)
        if count:
            self._unread.on_stream(-count, -size)

    def drop(self) -> None:
        """Forget everything."""
        while entries := self.take():
            self.taken(entries)


def _counted(entries: Sequence[Entry]) -> tuple[int, int]:
    """Return how many answers there are, refusals left out, and their bytes."""
    sizes = [len(answer) for _, answer in entries if answer]
    return len(sizes), sum(sizes)
