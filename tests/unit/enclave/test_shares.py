"""What many askers share: none of them has all of it (SPEC 6.9; THREATS C3)."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from casemate_enclave.shares import Owner, Shares

HOG, OTHER, THIRD = (Owner(name, listed=False) for name in (b"hog", b"other", b"third"))
LISTED = Owner(b"listed", listed=True)


def taken(shares: Shares, owner: Owner, most: int = 100) -> int:
    """How many ``owner`` gets, one by one."""
    count = 0
    while count < most and shares.try_take(owner):
        count += 1
    return count


def test_c3_whoever_comes_first_leaves_a_reserve() -> None:
    shares = Shares(32)
    assert taken(shares, HOG) == 24
    assert taken(shares, OTHER) == 4
    assert taken(shares, THIRD) == 4
    assert not shares.try_take(LISTED)
    assert shares.used == 32
    shares.free(HOG)
    assert not shares.try_take(HOG)
    assert not shares.try_take(OTHER)
    assert shares.try_take(LISTED)


def test_c10_strangers_leave_the_reserve_where_callers_are_listed() -> None:
    shares = Shares(32, lambda: True)
    strangers = [Owner(b"%d" % n, listed=False) for n in range(32)]
    assert sum(taken(shares, stranger, 1) for stranger in strangers) == 24
    assert taken(shares, LISTED) == 4


def test_what_is_given_back_is_forgotten() -> None:
    shares = Shares(32)
    for _ in range(3):
        for _ in range(taken(shares, HOG)):
            shares.free(HOG)
    assert shares.used == 0
    assert not shares._held


def test_what_is_larger_than_the_common_part_is_taken_alone() -> None:
    shares = Shares(100)
    assert shares.try_take(HOG, 100)
    shares.free(HOG, 100)
    assert shares.try_take(OTHER, 1)
    assert not shares.try_take(HOG, 99)
    assert shares.try_take(HOG, 74)


def test_of_those_who_wait_whoever_holds_least_is_first() -> None:
    shares = Shares(4)
    assert taken(shares, HOG) == 3
    assert taken(shares, OTHER) == 1
    order: list[Owner] = []
    lock = threading.Lock()

    def wait(owner: Owner) -> None:
        shares.take(owner, lambda: None)
        with lock:
            order.append(owner)

    with ThreadPoolExecutor(4) as pool:
        for owner in (HOG, HOG, THIRD):
            waiting = len(shares._waiters)
            pool.submit(wait, owner)
            while len(shares._waiters) == waiting:
                time.sleep(0.001)
        shares.free(HOG)
        while not order:
            time.sleep(0.001)
        assert order == [THIRD]
        for owner in (OTHER, HOG, HOG):
            shares.free(owner)
    assert order == [THIRD, HOG, HOG]


def test_of_those_for_whom_there_is_room_whoever_holds_least_is_first() -> None:
    shares = Shares(32)
    assert all(shares.try_take(owner, n) for owner, n in ((HOG, 12), (OTHER, 10), (THIRD, 2)))
    granted: list[Owner] = []

    def wait(owner: Owner) -> None:
        shares.take(owner, lambda: None, 8)
        granted.append(owner)

    with ThreadPoolExecutor(2) as pool:
        for owner in (OTHER, THIRD):
            waiting = len(shares._waiters)
            pool.submit(wait, owner)
            while len(shares._waiters) == waiting:
                time.sleep(0.001)
        shares.free(HOG, 12)
        while not granted:
            time.sleep(0.001)
        assert [waiter.owner for waiter in shares._waiters] == [OTHER]
        shares.free(THIRD, 10)
    assert granted == [THIRD, OTHER]


def test_what_is_granted_to_whoever_is_just_giving_up_is_given_back() -> None:
    shares = Shares(1)
    assert shares.try_take(HOG)

    def give_up() -> None:
        shares.free(HOG)  # at this very moment
        raise TimeoutError

    with pytest.raises(TimeoutError):
        shares.take(OTHER, give_up)
    assert shares.used == 0
    assert not shares._held


def test_whoever_gives_up_waiting_leaves_nothing_behind() -> None:
    shares = Shares(1)
    assert shares.try_take(HOG)

    def give_up() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        shares.take(OTHER, give_up)
    assert not shares._waiters
    shares.free(HOG)
    assert shares.used == 0


def test_a_storm_loses_and_doubles_nothing() -> None:
    shares = Shares(8)
    owners = [Owner(b"%d" % n, listed=n % 2 == 0) for n in range(5)]
    most = 0
    running = 0
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal most, running
        owner = owners[number % 5]
        shares.take(owner, lambda: None)
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        shares.free(owner)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(3000)))
    assert most <= 8
    assert shares.used == 0
    assert not shares._waiters
