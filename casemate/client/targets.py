"""Several hosts of one service: one is used until it fails, then the next."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casemate.client.transport import HostConnection
from casemate.errors import Code, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.client.access import HostAccess


class Targets:
    """Connections in the order in which they are tried; thread-safe."""

    def __init__(self, targets: str | Sequence[str], access: HostAccess | None = None) -> None:
        """Prepare one connection for each ``host:port``; raises RequestError(INVALID_ARGUMENT)."""
        names = [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))
        if not names:
            raise RequestError(Code.INVALID_ARGUMENT, "no target")
        self._connections = [HostConnection(name, access) for name in names]
        self._lock = threading.Lock()
        self._at = 0

    def __len__(self) -> int:
        return len(self._connections)

    def in_order(self) -> tuple[HostConnection, ...]:
        """Every connection, the one in use first."""
        with self._lock:
            return (*self._connections[self._at :], *self._connections[: self._at])

    def leave(self, connection: HostConnection) -> None:
        """Move on to the next, unless ``connection`` is not in use any more."""
        with self._lock:
            if self._connections[self._at] is connection:
                self._at = (self._at + 1) % len(self._connections)

    def close(self) -> None:
        """Close every connection; calls under way fail."""
        for connection in self._connections:
            connection.close()
