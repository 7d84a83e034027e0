"""How many threads the connections of one enclave may have together (SPEC 9.2.1; THREATS H11)."""

from __future__ import annotations

import threading

from casemate import limits


class Crew:
    """How many threads all connections together may have beside two of their own; thread-safe."""

    def __init__(self, most: int = limits.NUMBERED_THREADS) -> None:
        self._lock = threading.Lock()
        self._left = most

    def join(self) -> bool:
        """Take a place; False if there is none."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self._left += 1
