"""Time that the host cannot set: the attestation device's, carried by CLOCK_BOOTTIME (SPEC 6.5)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from casemate import limits
from casemate.attestation.document import parse_document
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_kms.attester import Attester


def boottime() -> int:
    """Milliseconds since boot, time asleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def device_time(attester: Attester) -> int:
    """The device's own time, from the payload of a document that never leaves the enclave."""
    document = attester.attest(public_key=None, user_data=None, nonce=None)
    return parse_document(document).timestamp


class AttestedClock:
    """Milliseconds since 1970 by the attestation device; thread-safe.

    ``now`` never decreases and never lags behind a document that this enclave has made, so a
    session that starts at a verified document's timestamp is never in the future here.
    """

    def __init__(self, read_device: Callable[[], int], carry: Callable[[], int] = boottime) -> None:
        self._read_device = read_device
        self._carry = carry
        self._lock = threading.Lock()
        self._offset = 0
        self._read_at = -limits.CLOCK_SILENCE_MAX - 1
        self._stated = 0
        self._latest = 0

    def refresh(self) -> None:
        """Ask the device; raises CasemateError, and then the old reading is carried on.

        It is asked again when it was slow: so it seems on a machine that stood still for a moment.
        """
        for _ in range(limits.CLOCK_READINGS):
            before = self._carry()
            stated = self._read_device()
            if self._carry() - before <= limits.CLOCK_READING_MAX:
                break
        else:
            raise CasemateError(Code.CLOCK_UNAVAILABLE, "the security module answered too slowly")
        with self._lock:
            # From before the question: the document is younger, so time never lags behind it.
            self._offset = stated - before
            self._read_at = before
            self._stated = max(self._stated, stated)

    def observe(self, timestamp: int) -> None:
        """Take note of the timestamp of a document made for another purpose."""
        with self._lock:
            self._stated = max(self._stated, timestamp)
            self._latest = max(self._latest, timestamp)

    def now(self) -> int:
        """The present; raises CasemateError(CLOCK_UNAVAILABLE) after too long a silence."""
        with self._lock:
            carried = self._carry()
            if carried - self._read_at > limits.CLOCK_SILENCE_MAX:
                raise CasemateError(
                    Code.CLOCK_UNAVAILABLE, "the security module has been silent too long"
                )
            self._latest = max(self._latest, carried + self._offset)
            return self._latest

    @property
    def stated(self) -> int:
        """The latest time that the device itself stated: no later document is older than this."""
        with self._lock:
            return self._stated


def set_wall_clock(milliseconds: int) -> None:
    """Set the machine's clock, in forms where the machine is the enclave's own; raises OSError."""
    time.clock_settime_ns(time.CLOCK_REALTIME, milliseconds * 1_000_000)
