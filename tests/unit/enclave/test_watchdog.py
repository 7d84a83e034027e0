"""One thread ends every run that is overdue (THREATS C5)."""

import threading
import time
from dataclasses import dataclass

import pytest

from casemate_enclave.watchdog import Watchdog


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr("casemate_enclave.watchdog.time", fake)
    return fake


@dataclass
class Run:
    terminate: bool = False

    def ended_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self.terminate and time.monotonic() < end:
            time.sleep(0.005)
        return self.terminate


@pytest.fixture(scope="module")
def watchdog() -> Watchdog:
    return Watchdog()


def test_a_run_is_ended_at_its_deadline(clock: Clock) -> None:
    run = Run()
    with Watchdog().until(clock.now + 0.05, run):
        assert not run.ended_within(0.15)
        clock.now += 0.05
        assert run.ended_within(60)


def test_a_run_that_ended_in_time_is_left_alone(clock: Clock) -> None:
    watchdog, run, other = Watchdog(), Run(), Run()
    with watchdog.until(clock.now + 0.05, run):
        pass
    clock.now += 1
    with watchdog.until(clock.now, other):
        assert other.ended_within(60)
    assert not run.terminate
    assert not watchdog._runs


def test_a_deadline_that_has_passed_ends_at_once(watchdog: Watchdog) -> None:
    run = Run()
    with watchdog.until(time.monotonic() - 1, run):
        assert run.ended_within(60)


def test_an_earlier_deadline_wakes_the_thread(watchdog: Watchdog) -> None:
    late, early = Run(), Run()
    with watchdog.until(time.monotonic() + 600, late), watchdog.until(time.monotonic(), early):
        assert early.ended_within(60)
        assert not late.terminate


def test_many_runs_side_by_side(watchdog: Watchdog) -> None:
    ended = []

    def work(seconds: float) -> None:
        run = Run()
        with watchdog.until(time.monotonic() + seconds, run):
            ended.append(run.ended_within(60))

    threads = [threading.Thread(target=work, args=(i * 0.01,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [True] * 16
    assert not watchdog._runs


def test_an_exception_removes_the_entry(watchdog: Watchdog) -> None:
    with pytest.raises(ZeroDivisionError), watchdog.until(time.monotonic() + 60, Run()):
        _ = 1 / 0
    assert not watchdog._runs
