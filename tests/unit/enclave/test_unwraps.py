"""Unwraps: limited in rate, one at a time for each wrapped key (SPEC 6.6, 6.7; THREATS C7, C13)."""

from __future__ import annotations

import pickle
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from casemate import limits
from casemate.envelope.messages import Preamble
from casemate.envelope.opening import Asker
from casemate.envelope.replay import ReplayTable
from casemate.errors import CasemateError, Code, KeyReleaseError
from casemate_enclave.admission import Admission, Session
from casemate_enclave.keys import KeyCache
from casemate_enclave.unwraps import ReleaseLimits, SingleFlight, TokenBucket, Unwraps, _Flight
from tests.support.attacker import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ARN = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001"
WRAPPED = b"w" * 48
FAR = 1e12


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr("casemate_enclave.unwraps.time", fake)
    return fake


class Kms:
    """Releases what it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.failure: CasemateError | None = None

    def decrypt(
        self, *, key_arn: str, ciphertext_blob: bytes, context: Mapping[str, str], deadline: float
    ) -> bytes:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        return b"k" * 32


def code_of(act: Callable[[], object]) -> Code:
    with pytest.raises(CasemateError) as caught:
        act()
    return caught.value.code


def taken(act: Callable[[], object], most: int = 10_000) -> int:
    """How often ``act`` succeeds before it is refused as too much."""
    for count in range(most):
        try:
            act()
        except CasemateError as refused:
            return count if refused.code is Code.OVERLOADED else -1
    return most


# Rates


def test_a_bucket_gives_its_burst_and_then_its_rate(clock: Clock) -> None:
    bucket = TokenBucket(rate=10.0, burst=5)
    assert taken(bucket.take) == 5
    clock.now += 0.25
    assert taken(bucket.take) == 2
    clock.now += 3600
    assert taken(bucket.take) == 5


def arn(number: int) -> str:
    return f"{ARN[:-12]}{number:012x}"


def test_c7_invented_keys_share_one_limit_and_spare_the_owners(clock: Clock) -> None:
    table = ReleaseLimits()
    table.take(ARN)
    table.released(ARN)
    numbers = iter(range(2, 100_000))
    assert taken(lambda: table.take(arn(next(numbers)))) == limits.RELEASES_BURST - 1
    assert taken(lambda: table.take(ARN)) == limits.RELEASES_BURST


def test_c7_one_owners_flood_is_not_anothers(clock: Clock) -> None:
    table = ReleaseLimits()
    for number in (1, 2):
        table.released(arn(number))
    taken(lambda: table.take(arn(1)))
    table.take(arn(2))


def test_c7_what_is_remembered_is_bounded(clock: Clock) -> None:
    table = ReleaseLimits(capacity=8)
    for number in range(1000):
        table.released(arn(number))
    assert len(table._known) == 8


def test_a_failed_release_earns_no_bucket(clock: Clock) -> None:
    kms = Kms()
    kms.failure = KeyReleaseError(Code.KEY_RELEASE_DENIED, "no")
    limited = Unwraps(kms)
    for _ in range(limits.RELEASES_BURST):
        assert code_of(lambda: limited.release(ARN, b"b", {}, FAR)) is Code.KEY_RELEASE_DENIED
    assert code_of(lambda: limited.release(arn(2), b"b", {}, FAR)) is Code.OVERLOADED
    assert kms.calls == limits.RELEASES_BURST


def test_hpke_unwraps_have_a_limit_of_their_own(clock: Clock) -> None:
    limited = Unwraps(Kms())
    assert taken(limited.local) == limits.HPKE_UNWRAPS_BURST
    assert limited.release(ARN, b"b", {}, FAR) == b"k" * 32


def test_without_key_release_nothing_is_released() -> None:
    assert not Unwraps(None).releases
    refused = code_of(lambda: Unwraps(None).release(ARN, b"b", {}, FAR))
    assert refused is Code.KEY_RELEASE_UNAVAILABLE


# Single flight


def at_once(count: int, act: Callable[[int], object]) -> list[object]:
    results: list[object] = [None] * count

    def work(number: int) -> None:
        try:
            results[number] = act(number)
        except CasemateError as refused:
            results[number] = refused.code

    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


class Flights(SingleFlight):
    """Counts those who have boarded the flights of others."""

    def __init__(self) -> None:
        super().__init__()
        self.boarded = 0

    def _board(self, key: bytes, deadline: float) -> tuple[_Flight, bool]:
        flight, mine = super()._board(key, deadline)
        with self._lock:
            self.boarded += not mine
        return flight, mine


def test_first_requests_with_a_wrapped_key_unwrap_once() -> None:
    kms, flights, deadline = Kms(), Flights(), soon(90)
    limited = Unwraps(kms)

    def work() -> bytes:
        assert eventually(lambda: flights.boarded == 15)
        return limited.release(ARN, b"b", {}, deadline)

    assert at_once(16, lambda _: flights.run(WRAPPED, work, deadline)) == [b"k" * 32] * 16
    assert kms.calls == 1
    assert flights._flights == {}


def test_c13_a_short_deadline_is_not_anothers_refusal() -> None:
    """An attacker replays the headers with a millisecond left; the owner still gets the key."""
    flights, calls = Flights(), list[float]()

    def work(deadline: float) -> Callable[[], bytes]:
        def act() -> bytes:
            calls.append(deadline)
            # All others are on this flight, and again on the next but who flies it.
            assert eventually(lambda: flights.boarded == (3 if len(calls) == 1 else 5))
            assert len(calls) > 1 or eventually(lambda: time.monotonic() > deadline)
            if time.monotonic() > deadline:
                raise KeyReleaseError(Code.KEY_RELEASE_UNAVAILABLE, "KMS did not answer in time")
            return b"k" * 32

        return act

    def ask(number: int) -> object:
        assert number == 0 or eventually(lambda: bool(calls))
        deadline = soon(90 if number else 0.01)
        return flights.run(WRAPPED, work(deadline), deadline)

    hurried, *owners = at_once(4, ask)
    assert hurried is Code.KEY_RELEASE_UNAVAILABLE
    assert owners == [b"k" * 32] * 3
    assert len(calls) == 2


def test_a_failure_is_shared_by_those_who_wait_and_forgotten() -> None:
    kms, flights, deadline = Kms(), Flights(), soon(90)
    kms.failure = KeyReleaseError(Code.KEY_RELEASE_DENIED, "no")
    limited = Unwraps(kms)

    def work() -> bytes:
        assert eventually(lambda: flights.boarded == 7)
        return limited.release(ARN, b"b", {}, deadline)

    outcomes = at_once(8, lambda _: flights.run(WRAPPED, work, deadline))
    assert outcomes == [Code.KEY_RELEASE_DENIED] * 8
    assert kms.calls == 1
    kms.failure = None
    assert flights.run(WRAPPED, work, deadline) == b"k" * 32


def test_waiting_ends_with_the_deadline() -> None:
    flights, late = SingleFlight(), threading.Event()

    def slow() -> bytes:
        assert late.wait(60)
        return b"k" * 32

    def ask(number: int) -> object:
        if number == 0:
            return flights.run(WRAPPED, slow, soon(90))
        assert eventually(lambda: bool(flights._flights))
        try:
            return flights.run(WRAPPED, slow, soon(0.1))
        finally:
            late.set()

    assert at_once(2, ask) == [b"k" * 32, Code.KEY_RELEASE_UNAVAILABLE]


def test_an_unforeseen_fault_strands_nobody() -> None:
    flights = Flights()

    def broken() -> bytes:
        assert eventually(lambda: flights.boarded == 2)
        raise RuntimeError

    def ask(number: int) -> object:
        assert number == 0 or eventually(lambda: bool(flights._flights))
        try:
            return flights.run(WRAPPED, broken if number == 0 else lambda: b"k" * 32, soon(90))
        except RuntimeError:
            return "broken"

    assert at_once(3, ask) == ["broken", b"k" * 32, b"k" * 32]


def test_a_flight_gives_nothing_away() -> None:
    flight = _Flight(0.0)
    flight.result = b"secret" * 5
    assert "secret" not in repr(flight)
    with pytest.raises(TypeError):
        pickle.dumps(flight)


# Memory


@pytest.mark.slow
def test_ten_thousand_live_data_keys_take_less_than_50_mb() -> None:
    """Each with its key, its replay window, the window full of gaps, and known by sight."""
    others: dict[str, Any] = dict.fromkeys(("identity", "keys", "unwraps", "replay", "lifetime"))
    tracemalloc.start()
    try:
        cache, replay, door = KeyCache(), ReplayTable(0, 20_000), Admission("a", 1, **others)
        for number in range(10_000):
            commitment, name = number.to_bytes(32, "big"), number.to_bytes(48, "big")
            preamble = Preamble(
                "a model", 1, bytes(name), bytes(commitment), bytes(name) + b"s" * 16
            )
            encoded = preamble.encode()
            parsed = Preamble.parse(encoded)
            session = Session(commitment, 1 + number, 3_600_000 + number, name, 1 << 64)
            header = number.to_bytes(1306, "big")  # as long as one of key mode 1
            door.remember(header, session, Asker(encoded, parsed, parsed.caller))
            cache.put(name, commitment, name, session.not_after)
            for sequence in (0, 3, 1024):
                times = session.not_before, session.not_after
                replay.accept(commitment, *times, sequence, 10_001)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(replay) == len(door._known) == 10_000
    assert all(cache.get(n.to_bytes(48, "big"), n.to_bytes(32, "big"), 2) for n in range(10_000))
    assert used < 50_000_000
