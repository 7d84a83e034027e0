"""When an enclave stops taking sessions, and when it ends (SPEC 9.7)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from casemate.attestation import ServiceLimits
from casemate.errors import CasemateError, Code
from casemate_enclave.clock import AttestedClock
from casemate_enclave.lifetime import Lifetime

if TYPE_CHECKING:
    from collections.abc import Callable

BOOT = 1_790_000_000_000
HOUR = 3_600_000
DAY = 24 * HOUR
BOUNDS = ServiceLimits(sessions=8, models=1, model_bytes=1, request_bytes=1)


class World:
    """A device's time and a number of live sessions, both the test's."""

    def __init__(self, bounds: ServiceLimits = BOUNDS) -> None:
        self.at = 0
        self.live = 0
        clock = AttestedClock(lambda: BOOT + self.at, lambda: self.at)
        clock.refresh()
        self.clock = clock
        self.lifetime = Lifetime(clock, BOOT, bounds, lambda _now: self.live)

    def draining(self) -> bool:
        return self.lifetime.draining

    def pass_to(self, at: int) -> None:
        self.at = at
        self.clock.refresh()


@pytest.fixture
def latest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing begins early."""
    monkeypatch.setattr("secrets.randbelow", lambda _bound: 0)


@pytest.mark.usefixtures("latest")
def test_by_itself_an_hour_before_the_day_is_over() -> None:
    world = World()
    world.live = 3
    world.pass_to(DAY - HOUR - 1)
    assert not world.lifetime.due()
    assert not world.draining()
    assert not world.lifetime.over()
    world.pass_to(DAY - HOUR)
    assert world.lifetime.due()
    assert not world.lifetime.due()  # said once
    assert world.draining()
    assert not world.lifetime.over()
    world.pass_to(DAY - 1)
    assert not world.lifetime.over()
    world.pass_to(DAY)
    assert world.lifetime.over()


@pytest.mark.usefixtures("latest")
def test_over_with_the_last_session() -> None:
    world = World()
    world.live = 1
    world.pass_to(DAY - HOUR)
    world.lifetime.due()
    assert not world.lifetime.over()
    world.live = 0
    assert world.lifetime.over()


@pytest.mark.parametrize(
    ("at", "within", "ends"),
    [
        (0, 60_000, 60_000),
        (HOUR, 0, HOUR),
        (0, DAY, HOUR),  # no longer than the configuration says
        (DAY - 1000, HOUR, DAY),  # nor than it lives
        (DAY + 1000, HOUR, DAY),
    ],
)
@pytest.mark.usefixtures("latest")
def test_on_demand(at: int, within: int, ends: int) -> None:
    world = World()
    world.pass_to(at)
    assert world.lifetime.drain(within) == BOOT + ends
    assert world.draining()
    assert not world.lifetime.due()


@pytest.mark.usefixtures("latest")
def test_a_further_drain_only_brings_the_end_closer() -> None:
    world = World()
    assert world.lifetime.drain(60_000) == BOOT + 60_000
    assert world.lifetime.drain(HOUR) == BOOT + 60_000
    assert world.lifetime.drain(1_000) == BOOT + 1_000


def begins(choose: Callable[[int], int], monkeypatch: pytest.MonkeyPatch) -> int:
    """The minute in which a day-long life begins to drain."""
    monkeypatch.setattr("secrets.randbelow", choose)
    world = World(replace(BOUNDS, lifetime=DAY, drain=HOUR))
    for minute in range(24 * 60):
        world.pass_to(minute * 60_000)
        if world.lifetime.due():
            return minute
    raise AssertionError("never")


def test_by_chance_up_to_an_eighth_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    assert begins(lambda _bound: 0, monkeypatch) == 23 * 60
    assert begins(lambda bound: bound - 1, monkeypatch) == pytest.approx(23 * 60 * 7 / 8, abs=1)


def test_a_silent_device_neither_begins_nor_ends_it() -> None:
    world = World()
    world.lifetime.drain(60_000)
    world.live = 1
    world.at += 301_000  # carried on without an answer of the device's
    with pytest.raises(CasemateError) as refused:
        world.lifetime.over()
    assert refused.value.code is Code.CLOCK_UNAVAILABLE


@pytest.mark.parametrize(
    "changes", [{"lifetime": 9_999}, {"lifetime": DAY + 1}, {"drain": 0}, {"drain": HOUR + 1}]
)
def test_bounds_of_the_configuration(changes: dict[str, int]) -> None:
    with pytest.raises(CasemateError) as refused:
        replace(BOUNDS, **changes)
    assert refused.value.code is Code.EVIDENCE_CONFIGURATION


def test_a_drain_is_shorter_than_a_life() -> None:
    replace(BOUNDS, lifetime=20_000, drain=19_999)
    with pytest.raises(CasemateError):
        replace(BOUNDS, lifetime=20_000, drain=20_000)
