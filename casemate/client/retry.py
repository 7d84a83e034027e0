"""Which failures a client answers by asking again, and after what time (SPEC 11.5)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from casemate import limits
from casemate.errors import Code, RequestError, SealedStatusError


class Again(Enum):
    """How a call may go on after a failure."""

    SAME = auto()  # the identical bytes once more: an enclave runs them at most once
    RESEALED = auto()  # sealed anew, to newly verified evidence


# The host says that nothing became of the request for now. Whether that is true does not matter:
# the identical bytes run at most once at the instance that they are sealed for (SPEC 6.4). A silent
# KMS is not among them: the enclave has asked it several times before it says so.
TRANSIENT: Final = frozenset(
    {
        *(Code.OVERLOADED, Code.UNAVAILABLE, Code.HOST_UNREACHABLE, Code.NOT_CONFIGURED),
        Code.CLOCK_UNAVAILABLE,
    }
)
# The host says that the session is gone: only another header can succeed. If the host lies, the
# request may have run, so this is for calls that may run twice.
SESSION_GONE: Final = frozenset(
    {Code.STALE_SESSION, Code.EXPIRED, Code.UNKNOWN_KEY, Code.UNKNOWN_INSTANCE}
)
# Another target may still answer.
TARGET_GONE: Final = frozenset(
    {Code.HOST_UNREACHABLE, Code.UNAVAILABLE, Code.NOT_CONFIGURED, Code.UNKNOWN_MODEL}
)
# The enclave itself says, inside the seal, that no model ran: sealing anew repeats nothing. Another
# model under the same name and version (DIGEST_MISMATCH) is for people to decide about.
NOTHING_RAN: Final = frozenset(
    {
        Code.OVERLOADED,
        Code.UNKNOWN_MODEL,  # it made room for another version, which the evidence names
    }
)
_MOVES_MAX: Final = 8  # a model may be replaced again while the evidence is being verified
_AT_ONCE: Final = SESSION_GONE | TARGET_GONE | {Code.REPLAYED}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient a client is with failures that may pass; times in seconds.

    ``attempts`` counts repetitions beside the first attempt; 0 turns them off. Before the n-th the
    client waits a random time up to ``first_s`` times 2^n, at most ``longest_s``, so that clients
    that failed together do not come back together. A host that names a longer time is heard.
    """

    attempts: int = 4
    first_s: float = 0.1
    longest_s: float = 2.0

    def pause(self, repetition: int, hint_s: float | None) -> float:
        """Return the seconds to wait before ``repetition``, which counts from 0."""
        bound = min(self.longest_s, self.first_s * 2**repetition)
        wait = random.uniform(bound / 2, bound)  # noqa: S311 - spreads load, guards nothing
        return max(wait, min(hint_s or 0.0, limits.RETRY_HINT_MAX_S))


def says_not_ready(error: RequestError) -> bool:
    """Tell whether the enclave itself says that it does not serve the model now."""
    out_of_service = isinstance(error, SealedStatusError) and error.code is Code.UNAVAILABLE
    return out_of_service or error.code is Code.UNKNOWN_MODEL


class Attempts:
    """What one call has tried; decides whether and how it goes on."""

    def __init__(self, policy: RetryPolicy, *, repeatable: bool, bound: bool, targets: int) -> None:
        """Start a call that is ``repeatable``, or ``bound`` to the one instance it is sealed for.

        ``targets`` is the number of addresses that may be tried.
        """
        self._policy = policy
        self._repeatable = repeatable
        self._bound = bound
        self._targets = targets
        self._repetitions = 0
        self._turns = 0
        self._reseals = 0
        self._sent_again = False

    def after(self, error: RequestError, *, sent: bool) -> tuple[Again, float]:
        """Return how to go on after ``error`` and the seconds to wait; raises the final error.

        ``sent``: whether a sealed request may have reached the enclave.
        """
        again = self._again(error, sent=sent) if self._policy.attempts else None
        if again is None:
            raise self._final(error)
        if again is Again.RESEALED and error.code in _AT_ONCE:
            self._reseals += 1
            sealed = isinstance(error, SealedStatusError)
            moved = sealed and error.code is not Code.UNAVAILABLE
            if self._reseals <= (max(_MOVES_MAX, self._targets) if moved else self._targets):
                return again, 0.0
            if sealed or error.code not in TRANSIENT:
                raise self._final(error)
            # Each was asked at once: one that is being started may soon serve, as a lone one may.
        if not sent and error.code is Code.OVERLOADED:
            # Many clients need new evidence at once when a model is replaced, and a host makes only
            # so many documents a second: they take turns for as long as their deadlines allow.
            self._turns += 1
            return again, self._policy.pause(self._turns, error.retry_after_s)
        if self._repetitions >= self._policy.attempts:
            raise self._final(error)
        pause = self._policy.pause(self._repetitions, error.retry_after_s)
        self._repetitions += 1
        self._sent_again |= sent and again is Again.SAME
        return again, pause

    def _again(self, error: RequestError, *, sent: bool) -> Again | None:
        code = error.code
        if isinstance(error, SealedStatusError):
            # Out of service there, for minutes: nothing ran, and another target may have it.
            elsewhere = code is Code.UNAVAILABLE and self._targets > 1
            return Again.RESEALED if elsewhere or code in NOTHING_RAN else None
        elsewhere = code in TARGET_GONE and self._targets > 1
        if not sent:
            again = Again.SAME if code in TRANSIENT else None
            return Again.RESEALED if elsewhere else again
        if code in TRANSIENT and not (elsewhere and self._repeatable):
            return Again.SAME if self._repeatable or self._bound else None
        anew = code in TRANSIENT or code in SESSION_GONE or code is Code.REPLAYED
        return Again.RESEALED if anew and self._repeatable else None

    def _final(self, error: RequestError) -> RequestError:
        if error.code is Code.REPLAYED and self._sent_again:
            detail = "sent again after a failure, and seen before: whether it ran is unknown"
            return RequestError(Code.REPLAYED, detail)
        return error
