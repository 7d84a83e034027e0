"""When the enclave takes no new session any more, and when it ends (SPEC 9.7)."""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.attestation.structures import ServiceLimits
    from casemate_enclave.clock import AttestedClock


class Lifetime:
    """The end of one enclave's life: due by itself, or earlier on demand; thread-safe.

    Once a drain has begun nothing calls it off, and its end only moves closer.
    """

    def __init__(
        self,
        clock: AttestedClock,
        boot_time: int,
        bounds: ServiceLimits,
        live: Callable[[int], int],
    ) -> None:
        """``live`` says how many sessions have not ended at a time (milliseconds)."""
        self._clock = clock
        self._live = live
        self._drain = bounds.drain
        # By chance, so that replicas which started together do not drain together.
        early = secrets.randbelow((bounds.lifetime - bounds.drain) // limits.LIFETIME_SPREAD + 1)
        self._end = boot_time + bounds.lifetime - early
        self._lock = threading.Lock()
        self._until: int | None = None

    @property
    def draining(self) -> bool:
        """Whether sessions that are not live are refused."""
        return self._until is not None

    def drain(self, within: int) -> int:
        """Drain for ``within`` milliseconds at most; return the time at which it is over.

        Raises CasemateError (CLOCK_UNAVAILABLE).
        """
        now = self._clock.now()
        with self._lock:
            until = min(now + min(within, self._drain), self._end)
            if self._until is not None:
                until = min(until, self._until)
            self._until = until
            return until

    def due(self) -> bool:
        """Begin to drain if it is time to; True if it began now. Raises CasemateError."""
        now = self._clock.now()
        with self._lock:
            if self._until is not None or now < self._end - self._drain:
                return False
            self._until = self._end
            return True

    def over(self) -> bool:
        """Whether a drain has come to its end: its last session's, or its bound."""
        if self._until is None:
            return False
        now = self._clock.now()
        return now >= self._until or not self._live(now)
