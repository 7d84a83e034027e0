"""What of a request costs no cryptography, judged before anything does (SPEC 6.4).

All but the id and the sequence of a session's headers is the same: what was found good of an
authenticated one is known by sight from then on.
"""

from __future__ import annotations

import hmac
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from casemate import limits, wire
from casemate.attestation.structures import audience_hash
from casemate.envelope.header import (
    ANY_INSTANCE,
    KEY_MODE_HPKE,
    RequestHeader,
    parse_request_header,
    sequence_of,
    session_part,
)
from casemate.errors import Code, EnvelopeError

if TYPE_CHECKING:
    from casemate.envelope.opening import Asker
    from casemate.envelope.replay import ReplayTable
    from casemate_enclave.identity import Identity
    from casemate_enclave.keys import KeyRing
    from casemate_enclave.lifetime import Lifetime
    from casemate_enclave.unwraps import Unwraps

_FOR_EVER: Final = 1 << 64  # milliseconds


class Session(NamedTuple):
    """What is needed of that which a session's headers share, as long as its key is at hand.

    ``wrapped`` is ``H(wrapped_key)``, which this enclave can unwrap before ``kept_until``; times in
    milliseconds of attested time. ``asker``: who asked last, once a request was authenticated.
    """

    key_commitment: bytes
    not_before: int
    not_after: int
    wrapped: bytes
    kept_until: int
    asker: Asker | None = None


class Admission:
    """Judges headers; thread-safe, and holds no key."""

    def __init__(
        self,
        audience: str,
        request_bytes: int,
        *,
        identity: Identity,
        keys: KeyRing,
        unwraps: Unwraps,
        replay: ReplayTable,
        lifetime: Lifetime,
    ) -> None:
        self._audience = audience_hash(audience)
        self._request_bytes = request_bytes
        self._identity = identity
        self._keys = keys
        self._unwraps = unwraps
        self._replay = replay
        self._lifetime = lifetime
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Session] = OrderedDict()

    def admit(self, raw_header: bytes, size: int, now: int) -> tuple[Session, int]:
        """Return whose request of ``size`` sealed bytes this is, and its sequence.

        ``now`` in milliseconds of attested time. Raises EnvelopeError, in the order of SPEC 6.4.
        """
        session = self._known.get(session_part(raw_header))
        if session is not None and now < session.kept_until:
            sequence = sequence_of(raw_header)
            self._check_size(size)
        else:
            header = parse_request_header(raw_header)
            sequence = header.sequence
            self._check_size(size)
            session = self._judged(header)
        self._replay.check_times(session.not_before, session.not_after, now)
        if self._lifetime.draining and not self._replay.knows(session.key_commitment):
            raise EnvelopeError(Code.UNAVAILABLE, "draining: no new sessions")
        return session, sequence

    def remember(self, raw_header: bytes, session: Session, asker: Asker) -> None:
        """Know the session of an **authenticated** request by sight: others could fill the room.

        Where there is no more room, whoever has been known for longest is forgotten.
        """
        with self._lock:
            self._known[session_part(raw_header)] = session._replace(asker=asker)
            if len(self._known) > limits.SESSIONS_KNOWN:
                self._known.popitem(last=False)

    def expire(self, now: int) -> None:
        """Forget sessions that are over."""
        with self._lock:
            for part in [p for p, session in self._known.items() if now >= session.not_after]:
                del self._known[part]

    def _check_size(self, size: int) -> None:
        if size > self._request_bytes:
            raise EnvelopeError(Code.TOO_LARGE, f"{size} bytes, limit {self._request_bytes}")

    def _judged(self, header: RequestHeader) -> Session:
        kept_until = self._kept_until(header)
        return Session(
            *(header.key_commitment, header.not_before, header.not_after),
            wrapped=wire.digest(header.wrapped_key),
            kept_until=kept_until,
        )

    def _kept_until(self, header: RequestHeader) -> int:
        """Refuse what is for another enclave; say until when this one has the key for it."""
        if not hmac.compare_digest(header.audience, self._audience):
            raise EnvelopeError(Code.WRONG_AUDIENCE, "the request is for another audience")
        own = self._identity.instance_id
        hpke = header.key_mode == KEY_MODE_HPKE
        if header.instance_id not in ((own,) if hpke else (own, ANY_INSTANCE)):
            raise EnvelopeError(Code.UNKNOWN_KEY, "the request is for another instance")
        if hpke:
            return self._keys.find(header.key_id).kept_until
        if not self._unwraps.releases:
            raise EnvelopeError(Code.UNKNOWN_KEY, "no key release is configured")
        return _FOR_EVER
