"""Slots, token bucket, patience."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import CasemateError, Code
from casemate_host.admission import Patience, Slots, TokenBucket

if TYPE_CHECKING:
    import grpc


def test_slots_refuse_the_excess_and_come_back() -> None:
    slots = Slots(2)
    with slots.slot(), slots.slot():
        with pytest.raises(CasemateError) as raised, slots.slot():
            pass
        assert raised.value.code is Code.OVERLOADED
    with slots.slot():
        assert slots.taken == 1
    assert slots.taken == 0


def test_a_failure_gives_its_slot_back() -> None:
    slots = Slots(1)
    with pytest.raises(ValueError, match="x"), slots.slot():
        raise ValueError("x")
    assert slots.taken == 0


@given(st.lists(st.floats(0, 3), max_size=200))
def test_the_bucket_never_gives_more_than_burst_and_rate(pauses: list[float]) -> None:
    now = [100.0]
    bucket = TokenBucket(2.0, 5, lambda: now[0])
    taken = 0
    for pause in pauses:
        now[0] += pause
        with contextlib.suppress(CasemateError):
            bucket.take()
            taken += 1
        assert taken <= 5 + 2.0 * (now[0] - 100.0) + 1e-6


def test_the_bucket_fills_again() -> None:
    now = [0.0]
    bucket = TokenBucket(1.0, 1, lambda: now[0])
    bucket.take()
    with pytest.raises(CasemateError) as raised:
        bucket.take()
    assert raised.value.code is Code.OVERLOADED
    now[0] = 1.5
    bucket.take()


class _Context:
    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> bool:
        self.cancelled.set()
        return True


class _Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_patience_ends_the_slow_and_only_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr("casemate_host.admission.time", clock)
    patience = Patience(0.1)
    patience.start()
    slow, quick = _Context(), _Context()
    with patience.waiting(cast("grpc.ServicerContext", quick)):
        pass
    with patience.waiting(cast("grpc.ServicerContext", slow)):
        assert not slow.cancelled.wait(0.1)
        clock.now += 0.2
        assert slow.cancelled.wait(60)
    assert not quick.cancelled.is_set()
    patience.stop()
