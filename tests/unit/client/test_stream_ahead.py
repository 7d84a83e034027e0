"""What one iteration over a stream asks ahead, and the room for it, between threads (SPEC 5.9)."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from casemate.client.stream_answers import Ahead
from casemate.client.streaming import _Room
from casemate.errors import Code, RequestError

SOON = 20.0


def test_answers_that_come_together_wake_once_and_none_is_lost() -> None:
    ahead = Ahead(8)
    count = 20_000
    given: list[Any] = []
    asked = threading.Semaphore(0)

    def answer() -> None:
        for index in range(count):
            assert asked.acquire(timeout=SOON)
            given[index].answered(index, final=True)
            if index % 7 == 6 or index >= count - 8 or len(given) == index + 1:
                ahead.wake()

    thread = threading.Thread(target=answer)
    thread.start()
    taken: list[Any] = []
    for _ in range(count):
        given.append(ahead.next())
        asked.release()
        while ahead.has_news:
            taken += ahead.in_order()
    while ahead.waiting:
        taken += ahead.in_order()
    thread.join(SOON)
    assert taken == [*range(count)]


def test_whoever_waits_is_woken_for_an_answer_and_for_a_failure() -> None:
    ahead = Ahead(8)
    first, second = ahead.next(), ahead.next()

    def two() -> None:
        second.answered("two", final=True)  # type: ignore[arg-type]
        ahead.wake()

    timer = threading.Timer(0.1, two)
    timer.start()
    found: Any = ahead.first()
    assert found == (1, "two")
    timer.join()
    ahead.wake()  # for nothing
    timer = threading.Timer(0.1, first.failed, (RequestError(Code.UNAVAILABLE, "over"),))
    timer.start()
    with pytest.raises(RequestError) as caught:
        ahead.first()
    assert caught.value.code is Code.UNAVAILABLE
    assert not ahead.waiting


def test_a_piece_that_is_not_the_last_is_no_answer() -> None:
    ahead = Ahead(8)
    answer = ahead.next()
    answer.answered("piece", final=False)  # type: ignore[arg-type]
    assert not ahead.has_news
    answer.answered("last", final=True)  # type: ignore[arg-type]
    found: Any = ahead.first()
    assert found == (0, "last")


def test_room_is_waited_for_until_the_deadline() -> None:
    room = _Room(2)
    soon = time.monotonic() + 0.2
    assert [room.acquire(soon) for _ in range(3)] == [True, True, False]
    assert time.monotonic() >= soon
    timer = threading.Timer(0.1, room.release, (3,))
    timer.start()
    assert [room.acquire(time.monotonic() + SOON) for _ in range(3)] == [True] * 3
    timer.join()
    assert not room.acquire(0.0)


def test_all_who_wait_for_room_get_it() -> None:
    room = _Room(0)
    got: list[bool] = []
    threads = [
        threading.Thread(target=lambda: got.append(room.acquire(time.monotonic() + SOON)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    room.release(3)
    room.release(5)
    for thread in threads:
        thread.join(SOON)
    assert got == [True] * 8
