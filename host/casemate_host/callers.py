"""Who calls this host, and what share of it each may take (SPEC 9.6.1; THREATS C3).

This is the operator's accounting. It decides nothing inside the seal, where callers are known by
their signatures.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_host.admission import ShedError, Slots, TokenBucket
from casemate_host.unread import Unread
from casemate_host.usage import Used

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    import grpc

ANONYMOUS: Final = "anonymous"
_BEARER: Final = "Bearer "
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What one caller may take; None: no bound of its own.

    ``rate`` in calls a second with bursts of ``burst``; ``concurrent`` calls at a time, of them so
    many ``streams``;
    ``daily_calls`` and ``daily_bytes`` in each day of UTC.
    """

    rate: float | None = None
    burst: int | None = None
    concurrent: int | None = None
    daily_calls: int | None = None
    daily_bytes: int | None = None
    streams: int | None = None


@dataclass(frozen=True, slots=True)
class CallerConfig:
    """One known caller: SHA-256 digests of its tokens, names in its certificates."""

    name: str
    limits: CallerLimits
    tokens: tuple[bytes, ...] = field(default=(), repr=False)
    certificates: tuple[str, ...] = ()


class DailyQuota:
    """Counts calls and bytes of one day; thread-safe."""

    def __init__(
        self,
        calls: int | None,
        size: int | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._calls = calls
        self._bytes = size
        self._clock = clock
        self._lock = threading.Lock()
        self._day = 0
        self._used_calls = 0
        self._used_bytes = 0

    def call(self) -> None:
        """Count a call; raises ShedError(QUOTA_EXCEEDED) if the day's share is used up."""
        with self._lock:
            self._turn()
            out_of_calls = self._calls is not None and self._used_calls >= self._calls
            if out_of_calls or (self._bytes is not None and self._used_bytes >= self._bytes):
                left_s = _DAY_S - self._clock() % _DAY_S
                detail = "the caller's share of this day is used up"
                raise ShedError(detail, left_s, Code.QUOTA_EXCEEDED)
            self._used_calls += 1

    def spend(self, size: int) -> None:
        """Count ``size`` bytes of a call that was let in."""
        with self._lock:
            self._used_bytes += size

    def used(self) -> Used:
        """Return what was used of the present day."""
        with self._lock:
            self._turn()
            return Used(self._day, self._used_calls, self._used_bytes)

    def resume(self, used: Used) -> None:
        """Go on from what was used before, if that was on the present day."""
        with self._lock:
            self._turn()
            if used.day == self._day:
                self._used_calls += used.calls
                self._used_bytes += used.size

    def _turn(self) -> None:
        day = int(self._clock() // _DAY_S)
        if day != self._day:
            self._day, self._used_calls, self._used_bytes = day, 0, 0


class Caller:
    """One caller's share of this host; thread-safe."""

    def __init__(self, name: str, bounds: CallerLimits, evidence: TokenBucket) -> None:
        """``evidence``: the bucket for fresh evidence that this caller takes from."""
        self.name = name
        self.evidence = evidence
        self.unread = Unread(bounds.concurrent)
        self._slots = Slots(bounds.concurrent) if bounds.concurrent is not None else None
        self._streams = Slots(bounds.streams) if bounds.streams is not None else None
        # Calls for evidence do not count as calls, and have a share of their own.
        self._asking = Slots(limits.EVIDENCE_SHARE) if bounds.concurrent is not None else None
        self._call_streams = None
        if bounds.concurrent is not None:
            self._call_streams = Slots(limits.CALL_STREAMS_SHARE)
        self._framed = Slots(limits.FRAMED_SHARE) if bounds.concurrent is not None else None
        self._bucket = None
        if bounds.rate is not None:
            burst = bounds.burst if bounds.burst is not None else max(1, int(bounds.rate))
            self._bucket = TokenBucket(bounds.rate, burst)
        self.quota: DailyQuota | None = None
        if bounds.daily_calls is not None or bounds.daily_bytes is not None:
            self.quota = DailyQuota(bounds.daily_calls, bounds.daily_bytes)

    def enter(self) -> None:
        """Begin a call, to be ended with ``leave``; raises ShedError."""
        self.unread.check()
        if self._slots is not None:
            self._slots.take()
        try:
            if self._bucket is not None:
                self._bucket.take()
            if self.quota is not None:
                self.quota.call()
        except ShedError:
            self.leave()
            raise

    def enter_all(self, count: int) -> bool:
        """Begin ``count`` calls at once; False if that has to be looked at one by one."""
        if self._bucket is not None or self.quota is not None:
            return False
        try:
            self.unread.check()
            if self._slots is not None:
                self._slots.take(count)
        except ShedError:
            return False
        return True

    def leave(self, count: int = 1) -> None:
        """End ``count`` calls."""
        if self._slots is not None:
            self._slots.free(count)

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """``enter``, the block, ``leave``."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def stream(self) -> AbstractContextManager[None]:
        """Hold one of its streams within the block; raises ShedError."""
        return contextlib.nullcontext() if self._streams is None else self._streams.slot()

    def call_stream(self) -> AbstractContextManager[None]:
        """Hold one of its streams of calls within the block; raises ShedError."""
        return contextlib.nullcontext() if self._call_streams is None else self._call_streams.slot()

    def framed(self) -> AbstractContextManager[None]:
        """Hold one of its framed connections within the block; raises ShedError."""
        return contextlib.nullcontext() if self._framed is None else self._framed.slot()

    def asking(self) -> AbstractContextManager[None]:
        """Hold one of its calls for evidence within the block; raises ShedError."""
        self.unread.check()
        return contextlib.nullcontext() if self._asking is None else self._asking.slot()

    def spend(self, size: int) -> None:
        """Count the bytes of a call's message."""
        if self.quota is not None:
            self.quota.spend(size)


class Callers:
    """Everybody this host knows, and the anonymous if it serves them."""

    def __init__(
        self, known: Iterable[CallerConfig] = (), anonymous: CallerLimits | None = None
    ) -> None:
        """``anonymous``: what all the unknown may take together; None: they are refused."""
        self._tokens: dict[bytes, tuple[bytes, Caller]] = {}
        self._certificates: dict[str, Caller] = {}
        for config in known:
            caller = Caller(config.name, config.limits, _evidence_bucket())
            self._tokens |= {digest: (digest, caller) for digest in config.tokens}
            self._certificates |= dict.fromkeys(config.certificates, caller)
        self._anonymous = None
        if anonymous is not None:
            self._anonymous = Caller(ANONYMOUS, anonymous, _evidence_bucket())

    @property
    def unread(self) -> list[Unread]:
        """Everybody's unread answers."""
        return [caller.unread for caller in self._everybody()]

    @property
    def quotas(self) -> dict[str, DailyQuota]:
        """The quotas of those who have one, by name."""
        return {c.name: c.quota for c in self._everybody() if c.quota is not None}

    def _everybody(self) -> list[Caller]:
        known = {caller.name: caller for _, caller in self._tokens.values()}
        known |= {caller.name: caller for caller in self._certificates.values()}
        anonymous = [] if self._anonymous is None else [self._anonymous]
        return [*known.values(), *anonymous]

    def claimed(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller | None:
        """Return who a call's metadata says it is; None if only a certificate can say.

        Raises CasemateError(UNAUTHENTICATED).
        """
        for key, value in metadata:
            if key == "authorization":
                return self._by_token(value)
        return None if self._certificates else self._unknown()

    def certified(self, context: grpc.ServicerContext) -> Caller:
        """Return whom the client certificate of ``context`` names; raises as ``claimed``."""
        for identity in context.peer_identities() or ():
            caller = self._certificates.get(identity.decode("utf-8", "replace"))
            if caller is not None:
                return caller
        return self._unknown()

    def _by_token(self, value: str | bytes) -> Caller:
        text = value if isinstance(value, str) else value.decode("latin-1")
        digest = hashlib.sha256(text.removeprefix(_BEARER).encode()).digest()
        # Whoever guesses steers no bit of the digest: what the look-up's time tells is of no use.
        known, caller = self._tokens.get(digest, (b"", None))
        if caller is None or not hmac.compare_digest(known, digest):
            raise CasemateError(Code.UNAUTHENTICATED, "the token is not known here")
        return caller

    def _unknown(self) -> Caller:
        if self._anonymous is None:
            raise CasemateError(Code.UNAUTHENTICATED, "this host serves known callers only")
        return self._anonymous


def _evidence_bucket() -> TokenBucket:
    return TokenBucket(limits.EVIDENCE_RATE, limits.EVIDENCE_BURST)
