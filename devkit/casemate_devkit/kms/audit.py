"""The audit trail: one JSON line for each request, shaped after CloudTrail; never key material."""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_LOG = logging.getLogger("casemate_devkit.kms")


class AuditTrail:
    """Appends to one file; thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def write(self, event: dict[str, Any]) -> None:
        """Append ``event``, and tell the log its operation, decision and reason."""
        line = json.dumps(event) + "\n"
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line)
        _LOG.info(
            "%s %s: %s (%s)",
            event.get("decision"),
            event.get("eventName"),
            event.get("reason"),
            event.get("principal"),
        )

    def events(self) -> list[dict[str, Any]]:
        """Return all events so far."""
        if not self.path.exists():
            return []
        with self._lock, self.path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
