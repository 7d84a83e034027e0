"""Several hosts of one service: one is used until it fails, then the next."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from casemate.errors import Code, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate.client.steps import Connection

C = TypeVar("C", bound="Connection")


class Targets(Generic[C]):
    """Connections in the order in which they are tried; thread-safe."""

    def __init__(self, targets: str | Sequence[str], connect: Callable[[str], C]) -> None:
        """``connect`` each ``host:port``, lazily; raises RequestError(INVALID_ARGUMENT)."""
        names = [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))
        if not names:
            raise RequestError(Code.INVALID_ARGUMENT, "no target")
        self._connections = [connect(name) for name in names]
        self._lock = threading.Lock()
        self._at = 0

    def __len__(self) -> int:
        return len(self._connections)

    def in_order(self) -> tuple[C, ...]:
        """Every connection, the one in use first."""
        with self._lock:
            return (*self._connections[self._at :], *self._connections[: self._at])

    def leave(self, connection: Connection) -> None:
        """Move on to the next, unless ``connection`` is not in use any more."""
        with self._lock:
            if self._connections[self._at] is connection:
                self._at = (self._at + 1) % len(self._connections)
