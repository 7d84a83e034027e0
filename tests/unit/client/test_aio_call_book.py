"""Tasks that wait in one book: each hears of its own deadline (SPEC 9.6.2)."""

from __future__ import annotations

import asyncio
import time

import pytest

from casemate.client.aio_call_book import AsyncCallBook
from casemate.client.call_book import Failure
from casemate.errors import Code, RequestError
from casemate.v1.confidential_inference_pb2 import NumberedResponse, SealedResponses
from tests.support.patience import patiently

LONG_S = 600.0


def answers(*numbers: int) -> bytes:
    entries = [NumberedResponse(number=number, response=b"%d" % number) for number in numbers]
    return SealedResponses(responses=entries).SerializeToString()


async def begun(book: AsyncCallBook, *timeouts_s: float) -> list[asyncio.Task[bytes]]:
    tasks = [asyncio.create_task(book.call(b"question", timeout_s)) for timeout_s in timeouts_s]
    await asyncio.sleep(0)
    return tasks


async def late(task: asyncio.Task[bytes]) -> None:
    with pytest.raises(RequestError) as caught:
        await task
    assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_each_call_hears_of_its_own_deadline_and_the_host_of_each() -> None:
    async def main(second_s: float) -> bool:
        """Whether the second was still waited for when the first was over."""
        woken: list[None] = []
        book = AsyncCallBook("host", lambda: woken.append(None))
        asked = time.monotonic()
        patient, second, first = await begun(book, LONG_S, second_s, 0.1)
        assert book.next_message()
        await late(first)
        assert time.monotonic() - asked >= 0.1
        waited = not second.done()
        await late(second)
        assert time.monotonic() - asked >= second_s
        assert len(woken) == 5  # three were asked, two are given up
        assert book.next_message()
        book.answered(answers(1, 2, 3))
        assert await patient == b"1"
        assert book.empty
        return waited

    assert patiently(lambda second_s: asyncio.run(main(second_s)), bool)


def test_a_deadline_that_comes_after_idle_time_is_noticed() -> None:
    async def main() -> None:
        book = AsyncCallBook("host", lambda: None)
        (early,) = await begun(book, 0.05)
        book.answered(answers(1))
        assert await early == b"1"
        await asyncio.sleep(0.1)
        (task,) = await begun(book, 0.05)
        await late(task)

    asyncio.run(main())


def test_a_task_that_is_cancelled_gives_its_number_up() -> None:
    async def main() -> None:
        woken: list[None] = []
        book = AsyncCallBook("host", lambda: woken.append(None))
        task, other = await begun(book, LONG_S, LONG_S)
        assert book.next_message()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(woken) == 3
        assert book.next_message()
        book.answered(answers(2, 1))
        assert await other == b"2"

    asyncio.run(main())


def test_with_the_stream_all_calls_end_and_nothing_is_left_on_the_loop() -> None:
    async def main() -> None:
        book = AsyncCallBook("host", lambda: None)
        tasks = await begun(book, LONG_S, LONG_S)
        book.fail(Failure(Code.UNAVAILABLE, "host: gone"))
        for task in tasks:
            with pytest.raises(RequestError, match="gone"):
                await task
        timers: list[asyncio.TimerHandle] = vars(asyncio.get_running_loop())["_scheduled"]
        assert all(timer.cancelled() for timer in timers)

    asyncio.run(main())
