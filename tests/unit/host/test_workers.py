"""Threads that serve calls: bounded, reused, and gone when nobody needs them."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

import pytest

from casemate import limits
from casemate_host.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(3, "call")
    yield workers
    workers.shutdown()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread ends because the machine is slow."""
    monkeypatch.setattr(limits, "THREAD_IDLE_S", 600.0)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "THREAD_IDLE_S", 0.05)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_calls_run_beside_each_other_up_to_the_bound_and_then_wait(workers: Workers) -> None:
    meet, go = threading.Barrier(4), threading.Event()

    def call(number: int) -> int:
        if number < 3:
            meet.wait(60)
        go.wait(60)
        return number

    futures = [workers.submit(call, number) for number in range(5)]
    meet.wait(60)
    assert workers.full
    assert (workers.taken, workers.threads) == (5, 3)
    go.set()
    assert [future.result(60) for future in futures] == [0, 1, 2, 3, 4]
    assert workers.wait_empty(60)
    assert workers.threads == 3


def test_one_call_after_the_other_takes_one_thread(workers: Workers) -> None:
    for _ in range(50):
        workers.submit(lambda: None).result(60)
        eventually(lambda: bool(workers._free))
    assert workers.threads == 1


@pytest.mark.usefixtures("impatient")
def test_threads_that_nobody_needs_end_and_come_back(workers: Workers) -> None:
    for _ in range(2):
        meet = threading.Barrier(3)
        for future in [workers.submit(meet.wait, 60) for _ in range(3)]:
            future.result(60)
        eventually(lambda: workers.threads == 0)


@pytest.mark.usefixtures("impatient")
def test_a_thread_that_is_needed_stays_while_others_end(workers: Workers) -> None:
    meet = threading.Barrier(3)
    for future in [workers.submit(meet.wait, 60) for _ in range(3)]:
        future.result(60)

    def alone() -> bool:
        workers.submit(lambda: None).result(60)
        return workers.threads == 1

    eventually(alone)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_no_call_is_lost_between_a_threads_last_look_and_its_end(workers: Workers) -> None:
    for number in range(100):
        assert workers.submit(int, number).result(60) == number
        time.sleep(0.045 + number % 10 / 1000)


def test_what_fails_is_its_own_callers(workers: Workers) -> None:
    def fail() -> None:
        raise KeyError("k")

    with pytest.raises(KeyError):
        workers.submit(fail).result(60)
    assert workers.submit(lambda: 1).result(60) == 1
    assert workers.wait_empty(60)


class _Answer:
    """Large, in life."""


def test_nothing_of_a_call_is_kept_after_it(workers: Workers) -> None:
    future = workers.submit(_Answer)
    answer = weakref.ref(future.result(60))
    del future
    eventually(lambda: answer() is None)


def test_a_shutdown_waits_for_calls_and_takes_none(workers: Workers) -> None:
    go = threading.Event()
    futures = [workers.submit(go.wait, 60) for _ in range(4)]
    workers.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError):
        workers.submit(lambda: None)
    with pytest.raises(CancelledError):
        futures[3].result(60)
    go.set()
    workers.shutdown()
    assert workers.threads == 0
    assert all(future.done() for future in futures)
    assert workers.wait_empty(0)


def test_calls_without_a_thread_count_too(workers: Workers) -> None:
    for _ in range(3):
        workers.hold()
    assert workers.full
    for _ in range(3):
        workers.let_go()
    assert workers.wait_empty(0)


def test_calls_without_a_thread_are_counted_together_if_there_is_room_for_all(
    workers: Workers,
) -> None:
    assert workers.hold_all(2)
    assert not workers.hold_all(2)
    assert workers.taken == 2
    assert workers.hold_all(1)
    workers.let_go(3)
    assert workers.wait_empty(0)
