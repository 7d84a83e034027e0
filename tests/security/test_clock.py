"""The device's clock set back and forward under a whole enclave (THREATS.md: H10)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from casemate.errors import Code, FrameError
from tests.support.enclave_bench import ANSWER, Bench, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

HOUR_S = 3600


class Clock:
    """What the device states; a test moves it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def served(clock: Clock) -> Iterator[Bench]:
    with Bench(clock=clock) as bench:
        bench.serve()
        yield bench


def refusal(bench: Bench, session: object) -> Code:
    with pytest.raises(FrameError) as refused:
        bench.infer(session)  # type: ignore[arg-type]
    return refused.value.code


def test_h10_a_clock_set_back_brings_no_session_back(served: Bench, clock: Clock) -> None:
    session = served.session()
    assert rows_of(served.infer(session)) == ANSWER
    clock.ahead = HOUR_S + 1
    served.assembly.maintain_once()
    assert refusal(served, session) is Code.EXPIRED
    clock.ahead = 0
    served.assembly.maintain_once()
    assert refusal(served, session) is Code.EXPIRED
    clock.ahead = -24 * HOUR_S
    served.assembly.maintain_once()
    assert refusal(served, session) is Code.EXPIRED


def test_h10_a_clock_set_forward_ends_sessions_and_begins_none_early(
    served: Bench, clock: Clock
) -> None:
    old = served.session()
    assert rows_of(served.infer(old)) == ANSWER
    clock.ahead = 2 * HOUR_S
    future = served.session()  # its evidence is of the device's new time
    assert rows_of(served.infer(future)) == ANSWER
    assert refusal(served, old) is Code.EXPIRED
