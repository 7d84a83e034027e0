"""So many at once, and nobody waits for those that take long."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from casemate_enclave.soft_limit import Place, SoftLimit
from tests.support.patience import patiently

FOREVER = 1000.0


def enters(limit: SoftLimit, within_s: float) -> bool:
    """Whether a thread of its own gets a place in time; it keeps it."""
    entered = threading.Event()

    def enter() -> None:
        limit.enter()
        entered.set()

    threading.Thread(target=enter, daemon=True).start()
    return entered.wait(within_s)


def test_who_leaves_lets_the_next_one_in() -> None:
    limit = SoftLimit(1, FOREVER)
    place = limit.enter()
    left = threading.Semaphore(0)

    def pass_through() -> None:
        limit.leave(limit.enter())
        left.release()

    for _ in range(20):
        threading.Thread(target=pass_through, daemon=True).start()
    assert not left.acquire(timeout=0.05)
    limit.leave(place)
    assert all(left.acquire(timeout=10) for _ in range(20))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_so_many_at_once_and_no_more(most: int) -> None:
    limit = SoftLimit(most, FOREVER)
    lock = threading.Lock()
    inside, largest = 0, 0

    def work(_: int) -> None:
        nonlocal inside, largest
        place = limit.enter()
        with lock:
            inside += 1
            largest = max(largest, inside)
        time.sleep(0.0005)
        with lock:
            inside -= 1
        limit.leave(place)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(600)))
    assert largest == most


def test_who_stays_long_does_not_count() -> None:
    def enters_at_once(hold_s: float) -> bool:
        limit = SoftLimit(2, hold_s)
        for _ in range(2):
            limit.enter()
        time.sleep(hold_s * 1.05)
        begun = time.monotonic()
        limit.enter()
        return time.monotonic() - begun < hold_s * 0.75

    assert patiently(enters_at_once, bool, (2.0, 20.0))


def test_who_waits_goes_on_in_time_though_others_came_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Place, "rouse", lambda _: None)  # it wakes too late, each time
    limit = SoftLimit(1, 2.0)
    place = limit.enter()
    begun = time.monotonic()
    entered = threading.Event()

    def wait() -> None:
        limit.enter()
        entered.set()

    threading.Thread(target=wait, daemon=True).start()
    time.sleep(1.5)
    limit.leave(place)
    limit.enter()  # counts for two seconds more
    assert entered.wait(1.3)
    assert time.monotonic() - begun >= 1.9


def test_giving_back_what_counts_no_more_frees_no_second_place() -> None:
    def keeps_others_out(hold_s: float) -> bool:
        limit = SoftLimit(1, hold_s)
        late = limit.enter()
        time.sleep(hold_s * 1.2)
        limit.enter()
        limit.leave(late)
        return not enters(limit, 0.1)

    assert patiently(keeps_others_out, bool, (0.5, 5.0, 20.0))


def test_who_waits_goes_on_in_time_though_nobody_ever_leaves() -> None:
    limit = SoftLimit(2, 0.02)
    entered: list[float] = []

    def enter() -> None:
        limit.enter()
        entered.append(time.monotonic())

    begun = time.monotonic()
    threads = [threading.Thread(target=enter) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(entered) == len(threads)
    # Two at once enter in each 20 ms; and none of those that came last before its turn.
    assert max(entered) - begun >= 0.02 * 4
