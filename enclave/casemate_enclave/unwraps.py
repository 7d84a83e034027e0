"""Unwraps of data keys: limited in rate, and one at a time for each wrapped key (SPEC 6.6, 6.7)."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from casemate import limits
from casemate.envelope.guard import Guarded
from casemate.errors import CasemateError, Code, KeyReleaseError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casemate_kms.models import KeyReleaser


class TokenBucket:
    """Lets ``rate`` a second pass, and ``burst`` at once after a rest; thread-safe."""

    __slots__ = ("_at", "_burst", "_lock", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._at = time.monotonic()

    def take(self) -> None:
        """Take one token; raises CasemateError(OVERLOADED) if there is none."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens < 1:
                raise CasemateError(Code.OVERLOADED, "too many new data keys: try again later")
            self._tokens -= 1


class ReleaseLimits:
    """A bucket for each KMS key that has released here, and one for all others; thread-safe.

    Whoever names keys that release nothing competes with others of that kind, never with the
    owners of keys that work.
    """

    def __init__(self, capacity: int = limits.RELEASE_BUCKETS_MAX) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._known: OrderedDict[str, TokenBucket] = OrderedDict()
        self._strangers = _kms_bucket()

    def take(self, key_arn: str) -> None:
        """Take a token of this key; raises CasemateError(OVERLOADED)."""
        with self._lock:
            bucket = self._known.get(key_arn, self._strangers)
        bucket.take()

    def released(self, key_arn: str) -> None:
        """Note that this key works: from now on it has a bucket of its own."""
        with self._lock:
            if key_arn not in self._known:
                self._known[key_arn] = _kms_bucket()
            self._known.move_to_end(key_arn)
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)


def _kms_bucket() -> TokenBucket:
    return TokenBucket(limits.RELEASES_PER_SECOND, limits.RELEASES_BURST)


class _Flight(Guarded):
    """One unwrap under way, and those who wait for it."""

    __slots__ = ("deadline", "failure", "landed", "result")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.landed = threading.Event()
        self.result: bytes | None = None
        self.failure: CasemateError | None = None


class SingleFlight:
    """Does the work for one key once for all who ask while it is under way; thread-safe.

    Nothing outlives the flight, failures least of all. A failure is shared only with those who had
    no more time than whoever flew: nobody's short deadline becomes another's refusal.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[bytes, _Flight] = {}

    def run(self, key: bytes, work: Callable[[], bytes], deadline: float) -> bytes:
        """Return what ``work`` returns, here or in the flight under way; raises what it raises.

        ``deadline`` in seconds of ``time.monotonic``. Raises KeyReleaseError
        (KEY_RELEASE_UNAVAILABLE) if it passes while another's flight is awaited.
        """
        while True:
            flight, mine = self._board(key, deadline)
            if mine:
                return self._fly(key, flight, work)
            if not flight.landed.wait(max(0.0, deadline - time.monotonic())):
                raise KeyReleaseError(Code.KEY_RELEASE_UNAVAILABLE, "no time left for the key")
            if flight.result is not None:
                return flight.result
            if flight.failure is not None and flight.deadline >= deadline:
                raise type(flight.failure)(flight.failure.code, flight.failure.detail)

    def _board(self, key: bytes, deadline: float) -> tuple[_Flight, bool]:
        """Return the flight under way, or a new one and True."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = _Flight(deadline)
            return flight, True

    def _fly(self, key: bytes, flight: _Flight, work: Callable[[], bytes]) -> bytes:
        try:
            flight.result = work()
        except CasemateError as failure:
            flight.failure = failure
            raise
        else:
            return flight.result
        finally:
            with self._lock:
                del self._flights[key]
            flight.landed.set()


class Unwraps:
    """Everything that costs an unwrap goes through here; thread-safe."""

    def __init__(self, kms: KeyReleaser | None) -> None:
        self._kms = kms
        self._releases = ReleaseLimits()
        self._hpke = TokenBucket(limits.HPKE_UNWRAPS_PER_SECOND, limits.HPKE_UNWRAPS_BURST)
        self._flights = SingleFlight()

    @property
    def releases(self) -> bool:
        """Whether attested key release is configured."""
        return self._kms is not None

    def local(self) -> None:
        """Take a token for an HPKE unwrap; raises CasemateError(OVERLOADED)."""
        self._hpke.take()

    def release(
        self, key_arn: str, ciphertext_blob: bytes, context: Mapping[str, str], deadline: float
    ) -> bytes:
        """Return a candidate for a data key by attested Decrypt.

        Raises KeyReleaseError, or CasemateError(OVERLOADED).
        """
        if self._kms is None:
            detail = "no key release is configured"
            raise KeyReleaseError(Code.KEY_RELEASE_UNAVAILABLE, detail)
        self._releases.take(key_arn)
        key = self._kms.decrypt(
            key_arn=key_arn, ciphertext_blob=ciphertext_blob, context=context, deadline=deadline
        )
        self._releases.released(key_arn)
        return key

    def once(self, key: bytes, work: Callable[[], bytes], deadline: float) -> bytes:
        """Run ``work`` once for all who ask for ``key`` meanwhile (see SingleFlight).

        ``key``: H(wrapped_key), whichever sessions it is for.
        """
        return self._flights.run(key, work, deadline)
