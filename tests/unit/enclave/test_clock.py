"""Attested time (SPEC 6.5, THREATS H10)."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_enclave.clock import AttestedClock, boottime, set_wall_clock


class Device:
    """A device and the machine's own clock, both set by hand, in milliseconds."""

    def __init__(self) -> None:
        self.time = 1_000_000
        self.carried = 5_000
        self.delay = 0
        self.slow = 10**9  # readings that have the delay
        self.dead = False

    def read(self) -> int:
        self.slow -= 1
        self.carried += self.delay if self.slow >= 0 else 0
        if self.dead:
            raise CasemateError(Code.UNAVAILABLE, "dead")
        return self.time

    def clock(self) -> AttestedClock:
        return AttestedClock(self.read, lambda: self.carried)

    def wait(self, milliseconds: int) -> None:
        self.time += milliseconds
        self.carried += milliseconds


def test_time_is_the_devices_carried_forward() -> None:
    device = Device()
    clock = device.clock()
    clock.refresh()
    assert clock.now() == clock.stated == 1_000_000
    device.wait(250)
    assert clock.now() == 1_000_250
    assert clock.stated == 1_000_000


def test_before_the_first_reading_there_is_no_time() -> None:
    with pytest.raises(CasemateError) as refusal:
        Device().clock().now()
    assert refusal.value.code == Code.CLOCK_UNAVAILABLE


def test_after_five_minutes_of_silence_there_is_no_time() -> None:
    device = Device()
    clock = device.clock()
    clock.refresh()
    device.dead = True
    device.wait(limits.CLOCK_SILENCE_MAX)
    with pytest.raises(CasemateError):
        clock.refresh()
    assert clock.now() == device.time
    device.wait(1)
    with pytest.raises(CasemateError) as refusal:
        clock.now()
    assert refusal.value.code == Code.CLOCK_UNAVAILABLE
    device.dead = False
    clock.refresh()
    assert clock.now() == device.time


def test_a_reading_that_the_host_delayed_is_not_taken() -> None:
    device = Device()
    clock = device.clock()
    device.delay = limits.CLOCK_READING_MAX + 1
    with pytest.raises(CasemateError) as refusal:
        clock.refresh()
    assert refusal.value.code == Code.CLOCK_UNAVAILABLE


def test_a_device_that_seemed_slow_is_asked_again() -> None:
    device = Device()
    clock = device.clock()
    device.delay, device.slow = limits.CLOCK_READING_MAX + 1, limits.CLOCK_READINGS - 1
    clock.refresh()
    assert clock.now() == device.time
    device.slow = limits.CLOCK_READINGS
    with pytest.raises(CasemateError):
        clock.refresh()


def test_time_never_lags_behind_a_document() -> None:
    device = Device()
    device.delay = 100  # the document is made while we wait
    clock = device.clock()
    clock.refresh()
    assert clock.now() >= device.time
    clock.observe(device.time + 5_000)
    assert clock.now() == clock.stated == device.time + 5_000


@given(st.lists(st.tuples(st.sampled_from("wrsb"), st.integers(0, 200_000)), max_size=30))
def test_time_never_decreases(steps: list[tuple[str, int]]) -> None:
    device = Device()
    clock = device.clock()
    clock.refresh()
    latest = clock.now()
    for step, amount in steps:
        if step == "w":
            device.wait(amount)
        elif step == "s":
            device.time += amount  # the device jumps, or the machine was frozen
        elif step == "b":
            device.time -= amount
        clock.refresh()
        assert clock.now() >= latest
        latest = clock.now()


def test_the_carrying_clock_counts_sleep_and_cannot_be_set() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME) * 1000
    carried = boottime()
    after = time.clock_gettime(time.CLOCK_BOOTTIME) * 1000
    assert before - 1 <= carried <= after + 1


def test_the_wall_clock_is_set_to_the_devices_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(time, "clock_settime_ns", lambda *call: calls.append(call))
    set_wall_clock(1_234)
    assert calls == [(time.CLOCK_REALTIME, 1_234_000_000)]
