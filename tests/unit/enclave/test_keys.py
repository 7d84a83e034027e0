"""The key ring's rotation (SPEC 3.3) and the cache of data keys (SPEC 6.6)."""

import copy
import pickle

import pytest

from casemate import limits
from casemate.attestation.structures import KeyConfig, key_id
from casemate.envelope.hpke import wrap
from casemate.errors import Code, EnvelopeError
from casemate_enclave.clock import AttestedClock
from casemate_enclave.keys import KeyCache, KeyRing

HOUR = 3_600_000
BOOT = 1_000_000_000


class Time:
    """A clock that the test moves, in milliseconds since the first key."""

    def __init__(self) -> None:
        self.passed = 0
        self.clock = AttestedClock(lambda: BOOT + self.passed, lambda: self.passed)
        self.clock.refresh()

    def at(self, milliseconds: int) -> None:
        self.passed = milliseconds
        self.clock.refresh()


@pytest.fixture
def moment() -> Time:
    return Time()


@pytest.fixture
def ring(moment: Time) -> KeyRing:
    return KeyRing(moment.clock)


def find(ring: KeyRing, encoded: bytes) -> Code:
    try:
        ring.find(key_id(encoded))
    except EnvelopeError as error:
        return error.code
    return Code.OK


def test_a_new_ring_publishes_one_key_that_opens(ring: KeyRing) -> None:
    (encoded,) = ring.published()
    config = KeyConfig.parse(encoded)
    assert (config.not_before, config.not_after) == (BOOT, BOOT + limits.KEM_LIFETIME_MAX)
    wrapped = wrap(config.public_key, b"k" * 32, encoded)
    assert ring.find(key_id(encoded)).unwrap(wrapped) == b"k" * 32


def test_rotation_at_half_the_lifetime_lists_the_current_key_last(
    ring: KeyRing, moment: Time
) -> None:
    (first,) = ring.published()
    moment.at(12 * HOUR - 1)
    assert not ring.rotate_if_due()
    moment.at(12 * HOUR)
    assert ring.rotate_if_due()
    assert not ring.rotate_if_due()
    previous, current = ring.published()
    assert previous == first
    assert KeyConfig.parse(current).not_before == BOOT + 12 * HOUR


def test_a_day_later_three_keys_open_and_two_are_published(ring: KeyRing, moment: Time) -> None:
    (first,) = ring.published()
    for hours in (12, 24):
        moment.at(hours * HOUR)
        assert ring.rotate_if_due()
    assert len(ring.published()) == 2
    assert first not in ring.published()
    assert find(ring, first) == Code.OK


def test_a_key_opens_for_one_hour_after_its_end_and_no_longer(ring: KeyRing, moment: Time) -> None:
    (first,) = ring.published()
    moment.at(25 * HOUR - 1)
    assert find(ring, first) == Code.OK
    moment.at(25 * HOUR)
    assert find(ring, first) == Code.UNKNOWN_KEY
    assert ring.rotate_if_due()
    assert len(ring._keys) == 1


def test_keys_are_chosen_by_their_exact_identifier(ring: KeyRing) -> None:
    (encoded,) = ring.published()
    assert find(ring, encoded + b"x") == Code.UNKNOWN_KEY
    for wrong in (b"", key_id(encoded)[:15], key_id(encoded) + b"\0"):
        with pytest.raises(EnvelopeError):
            ring.find(wrong)


def test_a_key_is_never_shown_pickled_or_copied(ring: KeyRing) -> None:
    key = ring.find(key_id(ring.published()[0]))
    assert "redacted" in repr(key)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(key)


def secret(letter: bytes) -> bytes:
    return letter * 48


def test_the_cache_forgets_at_the_sessions_end() -> None:
    cache = KeyCache()
    cache.put(b"w", b"c", secret(b"p"), not_after=100)
    assert cache.get(b"w", b"c", 99) == secret(b"p")
    assert cache.get(b"w", b"c", 100) is None
    assert cache.get(b"w", b"c", 99) is None


def test_the_cache_needs_both_names() -> None:
    cache = KeyCache()
    cache.put(b"w", b"c", secret(b"p"), not_after=100)
    with pytest.raises(EnvelopeError) as refused:
        cache.get(b"w", b"d", 1)
    assert refused.value.code is Code.OPEN_FAILED
    assert cache.get(b"w", b"c", 1) == secret(b"p")
    assert cache.get(b"w", b"d", 100) is None  # over: nothing is known of it any more
    assert cache.get(b"v", b"c", 1) is None


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    cache = KeyCache(capacity=2)
    cache.put(b"1", b"", secret(b"1"), 100)
    cache.put(b"2", b"", secret(b"2"), 100)
    assert cache.get(b"1", b"", 1) == secret(b"1")
    cache.put(b"3", b"", secret(b"3"), 100)
    found = [cache.get(name, b"", 1) for name in (b"1", b"2", b"3")]
    assert found == [secret(b"1"), None, secret(b"3")]


def held(cache: KeyCache) -> bytes:
    """Everything in the cache's memory."""
    return bytes(cache._secrets._memory)


def test_whatever_ends_a_key_overwrites_it() -> None:
    cache = KeyCache(capacity=2)
    cache.put(b"1", b"", secret(b"1"), 100)
    cache.put(b"2", b"", secret(b"2"), 200)
    cache.expire(150)
    assert secret(b"1") not in held(cache)
    assert cache.get(b"2", b"", 200) is None  # asked for too late
    assert not any(held(cache))
    for letter in (b"3", b"4", b"5"):  # the third makes the first leave
        cache.put(letter, b"", secret(letter), 300)
    assert secret(b"3") not in held(cache)
    cache.put(b"5", b"", secret(b"6"), 301)
    assert secret(b"5") not in held(cache)
    assert cache.get(b"5", b"", 250) == secret(b"6")


def test_a_key_in_use_is_a_copy_that_no_eviction_changes() -> None:
    """An erased key would seal an answer to whoever knows what zeros are."""
    cache = KeyCache(capacity=1)
    cache.put(b"1", b"", secret(b"1"), 100)
    used = cache.get(b"1", b"", 1)
    cache.put(b"2", b"", secret(b"2"), 100)
    assert used == secret(b"1")


def test_slots_never_run_out() -> None:
    cache = KeyCache(capacity=3)
    for number in range(50):
        cache.put(bytes([number % 7]), b"", secret(b"x"), 100 + number)
        cache.expire(95 + number)
    assert len(cache._entries) <= 3


def test_the_cache_is_locked_and_never_shown_pickled_or_copied() -> None:
    cache = KeyCache()
    assert cache.locked  # 192 KiB: below the limit of every machine that has one
    cache.put(b"1", b"", secret(b"s"), 100)
    for guarded in (cache, cache._secrets):
        assert "redacted" in repr(guarded)
        for leak in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                leak(guarded)


def test_where_nothing_can_be_locked_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(12, "mlock")

    monkeypatch.setattr("casemate_enclave.sandbox.syscalls.call", refused)
    cache = KeyCache()
    assert not cache.locked
    cache.put(b"1", b"", secret(b"s"), 100)
    assert cache.get(b"1", b"", 1) == secret(b"s")
