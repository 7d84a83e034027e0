"""Answers of a stream that its client has yet to take; they count against its caller (C3)."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from casemate import limits

if TYPE_CHECKING:
    from casemate.v1.confidential_inference_pb2 import NumberedResponse
    from casemate_host.unread import Unread


class ReadyAnswers:
    """Responses in the order in which they came; thread-safe."""

    def __init__(self, unread: Unread) -> None:
        """``unread``: the caller's."""
        self._unread = unread
        self._lock = threading.Lock()
        self._entries: deque[NumberedResponse] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: NumberedResponse) -> None:
        """Keep a response."""
        size = len(entry.response)
        with self._lock:
            self._entries.append(entry)
            self.size += size
        if size:
            self._unread.on_stream(1, size)

    def take(self) -> list[NumberedResponse]:
        """Return as many as fit into one message; they count until ``taken``."""
        entries: list[NumberedResponse] = []
        size = 0
        with self._lock:
            while self._entries and size < limits.CALL_STREAM_MESSAGE:
                entry = self._entries.popleft()
                entries.append(entry)
                size += len(entry.response)
            self.size -= size
        return entries

    def taken(self, entries: list[NumberedResponse]) -> None:
        """Note that gRPC has passed ``entries`` on, or that nobody will take them."""
        count = size = 0
        for entry in entries:
            if length := len(entry.response):
                count += 1
                size += length
        if count:
            self._unread.on_stream(-count, -size)

    def drop(self) -> None:
        """Forget everything."""
        while entries := self.take():
            self.taken(entries)
