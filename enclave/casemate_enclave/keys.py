"""The enclave's KEM keys and their rotation (SPEC 3.3), and the cache of data keys (SPEC 6.6)."""

from __future__ import annotations

import hmac
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

from casemate import limits, wire
from casemate.attestation.structures import KeyConfig, key_id
from casemate.envelope.failure import open_failed
from casemate.envelope.guard import Guarded
from casemate.envelope.hpke import KemKey
from casemate.errors import Code, EnvelopeError
from casemate_enclave.sandbox.memory import LockedSlots

if TYPE_CHECKING:
    from casemate_enclave.clock import AttestedClock

# Half the lifetime: clients that hold evidence always have hours left on the key that it names.
_ROTATE_AFTER = limits.KEM_LIFETIME_MAX // 2


@final
class RingKey(Guarded):
    """One KEM key with the encoded configuration that publishes it."""

    __slots__ = ("_private", "config", "encoded", "identifier", "kept_until")

    def __init__(self, private: KemKey, config: KeyConfig) -> None:
        self._private = private
        self.config = config
        self.encoded = config.encode()
        self.identifier = key_id(self.encoded)
        self.kept_until = config.not_after + limits.KEM_KEEP_AFTER

    @classmethod
    def generate(cls, not_before: int) -> Self:
        """Make a key that lives for ``KEM_LIFETIME_MAX`` from ``not_before``."""
        private = KemKey.generate()
        config = KeyConfig(private.public_bytes, not_before, not_before + limits.KEM_LIFETIME_MAX)
        return cls(private, config)

    def unwrap(self, wrapped: bytes) -> bytes:
        """Open an HPKE-wrapped data key; raises EnvelopeError(OPEN_FAILED)."""
        return self._private.unwrap(wrapped, self.encoded)


class KeyRing:
    """The current key, and earlier ones while a session may still use them; thread-safe."""

    def __init__(self, clock: AttestedClock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # From the device's own latest statement, not from the carried time: a document made in the
        # next moment must not be older than the key that it publishes (SPEC 3.8, step 15).
        self._keys = [RingKey.generate(clock.stated)]

    def published(self) -> tuple[bytes, ...]:
        """The one or two key configurations for evidence, the current one last."""
        now = self._clock.now()
        with self._lock:
            live = [key.encoded for key in self._keys if now < key.config.not_after]
            return tuple(live[-limits.KEY_CONFIGS_MAX :])

    def find(self, identifier: bytes) -> RingKey:
        """Return the key with exactly this key_id; raises EnvelopeError(UNKNOWN_KEY)."""
        now = self._clock.now()
        with self._lock:
            for key in self._keys:
                if key.identifier == identifier and now < key.kept_until:
                    return key
        raise EnvelopeError(Code.UNKNOWN_KEY, "this enclave has no such key")

    def rotate_if_due(self) -> bool:
        """Drop keys that are over, and make a new one at half the current one's lifetime."""
        now = self._clock.now()
        with self._lock:
            self._keys = [key for key in self._keys if now < key.kept_until]
            due = not self._keys or now >= self._keys[-1].config.not_before + _ROTATE_AFTER
            if due:
                self._keys.append(RingKey.generate(self._clock.stated))
            return due


@dataclass(slots=True)
class _Cached:
    slot: int
    commitment: bytes
    not_after: int


@final
class KeyCache(Guarded):
    """Session secrets by H(wrapped_key), each with the key_commitment it matched; thread-safe.

    Only what opened an authenticated request is put in, so nobody can place a wrong entry; the
    longest unused one makes room, which costs its owner one unwrap. A secret that is over is
    overwritten; ``locked`` says whether the kernel keeps all of them out of swap.
    """

    def __init__(self, capacity: int = limits.KEY_CACHE_MAX) -> None:
        self._lock = threading.Lock()
        # One more: the newest entry is stored before the oldest makes room.
        self._secrets = LockedSlots(capacity + 1, wire.HASH_BYTES)
        self.locked = self._secrets.locked
        self._capacity = capacity
        self._entries: OrderedDict[bytes, _Cached] = OrderedDict()

    def get(self, wrapped_digest: bytes, commitment: bytes, now: int) -> bytes | None:
        """Return a copy of the session's pseudorandom key, unless it is unknown or over.

        Raises EnvelopeError(OPEN_FAILED) for another commitment than the key's: one wrapped key
        holds one key, so no unwrap would end otherwise.
        """
        with self._lock:
            entry = self._entries.get(wrapped_digest)
            if entry is None:
                return None
            if now >= entry.not_after:
                self._forget(wrapped_digest)
                return None
            if not hmac.compare_digest(entry.commitment, commitment):
                raise open_failed()
            self._entries.move_to_end(wrapped_digest)
            return self._secrets.get(entry.slot)

    def put(self, wrapped_digest: bytes, commitment: bytes, prk: bytes, not_after: int) -> None:
        """Keep ``prk`` (48 bytes) until ``not_after`` at the latest."""
        with self._lock:
            entry = self._entries.get(wrapped_digest)
            if entry is not None:
                if entry.not_after == not_after:  # the same session again
                    return
                self._forget(wrapped_digest)
            slot = self._secrets.put(prk)
            self._entries[wrapped_digest] = _Cached(slot, commitment, not_after)
            if len(self._entries) > self._capacity:
                self._forget(next(iter(self._entries)))

    def expire(self, now: int) -> None:
        """Forget what is over."""
        with self._lock:
            for name in [n for n, entry in self._entries.items() if now >= entry.not_after]:
                self._forget(name)

    def _forget(self, wrapped_digest: bytes) -> None:
        self._secrets.erase(self._entries.pop(wrapped_digest).slot)
