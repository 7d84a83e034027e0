"""`AsyncStream` against a host that a test controls: bounds, giving up, cancellation, bad ends."""

# ruff: noqa: ANN401 - doubles, and what may be any awaitable
# ruff: noqa: ASYNC110 - a test waits for what nobody tells it of

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest

from casemate import cbor, limits
from casemate.client.aio_answers import AsyncFutureAnswer
from casemate.client.aio_streaming import AsyncStream
from casemate.client.steps import AsyncDriver, Driver, Pause
from casemate.client.stream_answers import PIECES, Asked, Released
from casemate.client.stream_core import StreamPlace
from casemate.client.stream_sending import units_of
from casemate.client.streaming import Stream
from casemate.envelope import questions
from casemate.envelope.sealed_chunks import encode_chunk, encode_header, parse_chunks
from casemate.errors import CasemateError, Code, RequestError
from casemate.tensors import TensorSpec, read_request, response_lead, to_response
from tests.support import envelope as env
from tests.support import evidence as made
from tests.support.streams import open_stream, trailer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence

    from casemate.client.core import Inference
    from casemate.client.steps import Steps
    from casemate.envelope.messages import Trailer
    from casemate.envelope.stream_opening import OpenedStream, StreamAnswer

DIGEST = b"\xdd" * 48  # as in every trailer
ENTRY = replace(made.LOADED, version=7, digest=DIGEST)
MODEL = ENTRY.name, ENTRY.version
SPEC = (TensorSpec("x", "FP32", (0,)),)


class Ear:
    """The enclave's side: what was asked, and the messages of what it answers."""

    opened: OpenedStream
    answer: StreamAnswer

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.together: list[int] = []  # how many were in each unit
        self.answered = 0
        self.ended = False
        self._begun = False
        self._head = b""

    def hear(self, message: bytes) -> None:
        header, chunks = parse_chunks(memoryview(message), first=not self._begun)
        if not self._begun:
            self._begun = True
            self.opened = open_stream(header)
            self.answer = self.opened.answer(env.INSTANCE_DIGEST)
            self._head = b"".join(encode_header(self.answer.header))
            self.opened.open(chunks.pop(0))
        for chunk in chunks:
            several = self.opened.questions(chunk)
            self.asked += map(value_of, several)
            self.together += [len(several)] if several else []
        self.ended = self.opened.ended

    def says(self, chunks: Iterable[bytes | bytearray]) -> bytes:
        head, self._head = self._head, b""
        return head + b"".join(b"".join(encode_chunk(chunk)) for chunk in chunks)

    def answers(self, unit: int, value: float, said: Trailer | None = None) -> bytes:
        self.answered += said is None or said.final
        message = to_response({"x": np.full(1, value, np.float32)}, "wdbc", 7)
        return self.says(self.answer.unit([[message]], said or trailer(unit), 0))

    def answers_together(
        self, unit: int, parts: Sequence[bytes], said: Trailer | None = None
    ) -> bytes:
        """One unit for several questions, as ``parts`` say; if none, ``said`` counts for all."""
        self.answered += len(parts)
        return self.says(self.answer.unit([[part] for part in parts], said or trailer(unit), 0))

    def ends(self, units: int) -> bytes:
        return self.says(self.answer.end(trailer(units), 0))


class AsyncHost(Ear):
    """A connection of an event loop; it takes messages while ``listens`` is set."""

    target = "a test"

    def __init__(self) -> None:
        super().__init__()
        self.listens = asyncio.Event()
        self.listens.set()
        self.said: asyncio.Queue[bytes | CasemateError | None] = asyncio.Queue()
        self.taken = 0
        self.held = 0
        self.cancelled = False

    def stream(self, messages: AsyncIterator[bytes], timeout_s: float) -> Self:
        self._listening = asyncio.create_task(self._listen(messages))
        return self

    async def _listen(self, messages: AsyncIterator[bytes]) -> None:
        async for message in messages:
            self.held += 1
            await self.listens.wait()
            self.hear(message)
        self._end()

    async def take(self) -> bytes | None:
        said = await self.said.get()
        if isinstance(said, CasemateError):
            raise said
        self.taken += 1
        return said

    def cancel(self) -> None:
        self.cancelled = True
        self._listening.cancel()

    def say(self, *messages: bytes | None) -> None:
        for message in messages:
            self.said.put_nowait(message)
        self._end()

    def _end(self) -> None:
        """As an enclave: once the end was heard and all is answered."""
        if self.ended and self.answered == len(self.asked):
            self.said.put_nowait(self.ends(self.answered))
            self.said.put_nowait(None)

    def call(self, *_: object) -> Any:
        raise AssertionError("a stream makes no unary call")


def value_of(question: bytes | memoryview) -> float:
    return float(read_request(question, SPEC, SPEC)[0]["x"][0])


def x(value: float) -> dict[str, np.ndarray]:
    return {"x": np.full(1, value, np.float32)}


def value(inference: Inference) -> float:
    return float(inference.outputs["x"][0])


def place(
    host: Any, timeout_s: float = 90, together: int = 1, *, receipt: bool = False
) -> StreamPlace:
    sealed = env.hpke_session().seal_stream(
        model="wdbc", version=7, digest=None, receipt=receipt, lead=response_lead
    )

    def answered_by(instance: bytes) -> Steps[Any]:
        assert instance == env.INSTANCE_DIGEST
        yield Pause(0)
        return object()  # evidence, which nothing here looks into

    return StreamPlace(
        sealed=sealed,
        connection=host,
        released=Released(ENTRY, sealed.header, {MODEL: together}, receipt=receipt),
        deadline=time.monotonic() + timeout_s,
        answered_by=answered_by,
        failed=lambda _error: None,
    )


def begin(
    host: AsyncHost, *, in_flight: int = 4, timeout_s: float = 90, together: int = 1
) -> AsyncStream:
    begun = place(host, timeout_s, together)
    return AsyncStream(begun, AsyncDriver(), outputs=(), in_flight=in_flight)


def on_a_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        asyncio.run(asyncio.wait_for(work(), 110))

    test.__name__ = work.__name__
    return test


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def has_heard(host: AsyncHost, count: int) -> bool:
    return len(host.asked) == count


async def code_of(waited: Any) -> Code:
    with pytest.raises(CasemateError) as caught:
        await waited
    return caught.value.code


@on_a_loop
async def test_no_more_questions_are_under_way_than_there_is_room_for() -> None:
    host = AsyncHost()
    async with begin(host, in_flight=2) as stream:
        first, second = [await stream.submit(x(n)) for n in range(2)]
        third = asyncio.create_task(stream.submit(x(2)))
        await until(lambda: len(host.asked) == 2)
        await asyncio.sleep(0.05)
        assert not third.done()
        assert host.asked == [0, 1]
        host.say(host.answers(1, 10))
        assert value(await second) == 10
        await third
        host.say(host.answers(0, 11), host.answers(2, 12))
        assert value(await first) == 11
        assert value(await (await third)) == 12
    assert host.ended


@on_a_loop
async def test_a_question_for_which_there_is_no_room_in_time_fails() -> None:
    stream = begin(AsyncHost(), in_flight=1)
    await stream.submit(x(0))
    stream._deadline = time.monotonic() + 0.1
    assert await code_of(stream.submit(x(1))) is Code.DEADLINE_EXCEEDED
    await stream.cancel()


@pytest.mark.parametrize("method", ["map", "as_finished"])
def test_an_endless_source_is_read_no_further_than_answers_are_taken(method: str) -> None:
    @on_a_loop
    async def work() -> None:
        host, count = AsyncHost(), 0

        async def source() -> AsyncIterator[dict[str, np.ndarray]]:
            nonlocal count
            for count in itertools.count(1):
                yield x(count)

        stream = begin(host, in_flight=4)
        answers = getattr(stream, method)(source())
        taking = asyncio.create_task(anext(answers))
        await until(lambda: len(host.asked) == 4)
        for unit in range(4):
            host.say(host.answers(unit, unit))
        await taking
        await until(lambda: len(host.asked) == 5)
        host.say(host.answers(4, 4))
        await until(lambda: count == 6)
        await asyncio.sleep(0.05)  # all are answered; but nobody takes more than the first
        assert len(host.asked) == 5
        assert count == 6
        await answers.aclose()
        await stream.cancel()

    work()


@on_a_loop
async def test_an_answer_comes_before_the_next_question_is_there() -> None:
    """A source that asks the next only when the last was answered is no deadlock."""
    host, answered = AsyncHost(), asyncio.Event()

    async def source() -> AsyncIterator[dict[str, np.ndarray]]:
        for number in range(3):
            yield x(number)
            await answered.wait()
            answered.clear()

    async with begin(host) as stream:
        got = []
        answers = stream.map(source())
        for unit in range(3):
            taking = asyncio.ensure_future(anext(answers))
            await until(partial(has_heard, host, unit + 1))
            host.say(host.answers(unit, unit * 2))
            got.append(value(await taking))
            answered.set()
        assert [one async for one in answers] == []
        assert got == [0, 2, 4]


@on_a_loop
async def test_answers_come_in_order_or_as_they_finish() -> None:
    host = AsyncHost()
    async with begin(host) as stream:
        in_order = asyncio.create_task(taken(stream.map([x(0), x(1), x(2)])))
        await until(lambda: len(host.asked) == 3)
        host.say(*(host.answers(unit, unit) for unit in (2, 0, 1)))
        assert [value(one) for one in await in_order] == [0, 1, 2]
        as_finished = asyncio.create_task(taken(stream.as_finished([x(0), x(1), x(2)])))
        await until(lambda: len(host.asked) == 6)
        host.say(*(host.answers(unit, unit) for unit in (5, 3, 4)))
        assert [(index, value(one)) for index, one in await as_finished] == [(2, 5), (0, 3), (1, 4)]


async def taken(answers: AsyncIterator[Any]) -> list[Any]:
    return [answer async for answer in answers]


@on_a_loop
async def test_what_a_source_raises_comes_after_the_answers_before_it() -> None:
    host = AsyncHost()

    def source() -> Iterator[dict[str, np.ndarray]]:
        yield x(0)
        raise LookupError("no more rows")

    got = []
    async with begin(host) as stream:
        asking = stream.map(source())
        taking = asyncio.ensure_future(anext(asking))
        await until(lambda: len(host.asked) == 1)
        host.say(host.answers(0, 5))
        got.append(value(await taking))
        with pytest.raises(LookupError):
            await anext(asking)
    assert got == [5]


@on_a_loop
async def test_a_question_given_up_before_it_is_sent_is_never_sent() -> None:
    host = AsyncHost()
    host.listens.clear()
    async with begin(host, in_flight=3) as stream:
        sent = await stream.submit(x(0))
        await until(lambda: host.held == 1)
        dropped, kept = [await stream.submit(x(n)) for n in (1, 2)]
        assert dropped.cancel()
        host.listens.set()
        await until(lambda: len(host.asked) == 2)
        assert host.asked == [0, 2]
        more = [await stream.submit(x(3))]  # its place is free again
        host.say(*(host.answers(unit, unit) for unit in range(3)))
        assert [value(await one) for one in (sent, kept, *more)] == [0, 1, 2]


@on_a_loop
async def test_the_answer_to_a_question_given_up_later_is_dropped() -> None:
    host = AsyncHost()
    async with begin(host, in_flight=2) as stream:
        late = await stream.submit(x(0))
        await until(lambda: len(host.asked) == 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(late, 0.05)
        assert host.asked == [0]
        other = await stream.submit(x(1))
        host.say(host.answers(0, 0), host.answers(1, 7))
        assert value(await other) == 7


@on_a_loop
async def test_a_cancelled_task_cancels_the_call_and_all_that_waits() -> None:
    host, futures = AsyncHost(), []

    async def work() -> None:
        async with begin(host, in_flight=2) as stream:
            futures.extend([await stream.submit(x(n)) for n in range(2)])
            await stream.submit(x(2))

    task = asyncio.create_task(work())
    await until(lambda: len(host.asked) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.cancelled
    for future in futures:
        assert await code_of(future) is Code.UNAVAILABLE


@on_a_loop
async def test_a_task_that_is_cancelled_while_it_leaves_cancels_the_call() -> None:
    host, futures = AsyncHost(), []

    async def work() -> None:
        async with begin(host) as stream:
            futures.append(await stream.submit(x(0)))

    task = asyncio.create_task(work())
    await until(lambda: host.ended)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.cancelled
    assert await code_of(futures[0]) is Code.UNAVAILABLE


@on_a_loop
async def test_what_ends_the_stream_fails_all_and_is_raised_on_leaving() -> None:
    host = AsyncHost()
    stream = begin(host, in_flight=1)
    future = await stream.submit(x(0))
    waiting = asyncio.create_task(stream.submit(x(1)))
    await asyncio.sleep(0)
    host.said.put_nowait(RequestError(Code.OVERLOADED, "too many streams"))
    assert await code_of(future) is Code.OVERLOADED
    assert await code_of(waiting) is Code.OVERLOADED
    assert await code_of(stream.aclose()) is Code.OVERLOADED
    assert host.cancelled


@pytest.mark.parametrize(
    "lie",
    [
        lambda host: host.answers(1, 0),  # to what was never asked
        lambda host: host.ends(1),  # although one is unanswered
        lambda host: None,  # cut without an end
        lambda host: b"\0" * 40,
    ],
    ids=["no such question", "an early end", "cut", "nonsense"],
)
def test_an_answer_that_is_not_whole_is_refused(lie: Callable[[AsyncHost], bytes | None]) -> None:
    @on_a_loop
    async def work() -> None:
        host = AsyncHost()
        stream = begin(host)
        future = await stream.submit(x(0))
        await until(lambda: len(host.asked) == 1)
        host.say(lie(host))
        assert await code_of(future) is Code.ANSWER_OPEN_FAILED
        assert await code_of(stream.aclose()) is Code.ANSWER_OPEN_FAILED

    work()


@on_a_loop
async def test_an_end_that_leaves_a_question_unanswered_is_refused() -> None:
    host = AsyncHost()
    stream = begin(host)
    future = await stream.submit(x(0))
    leaving = asyncio.create_task(stream.aclose())
    await until(lambda: host.ended)
    host.say(host.ends(1), None)
    assert await code_of(future) is Code.ANSWER_OPEN_FAILED
    assert await code_of(leaving) is Code.ANSWER_OPEN_FAILED


@on_a_loop
async def test_an_answer_by_another_model_is_refused_alone() -> None:
    host = AsyncHost()
    async with begin(host) as stream:
        future, other = [await stream.submit(x(n)) for n in range(2)]
        await until(lambda: len(host.asked) == 2)
        foreign = trailer(0)._replace(digest=b"\xee" * 48)
        host.say(host.answers(0, 0, foreign), host.answers(1, 1))
        assert await code_of(future) is Code.DIGEST_MISMATCH
        assert value(await other) == 1


@on_a_loop
async def test_pieces_that_nobody_takes_are_not_received() -> None:
    host = AsyncHost()
    async with begin(host) as stream:
        pieces = stream.pieces(x(0))
        taking = asyncio.ensure_future(anext(pieces))
        await until(lambda: len(host.asked) == 1)
        count = PIECES + 20
        for number in range(count):
            host.say(host.answers(0, number, trailer(0, final=number == count - 1)))
        assert value(await taking) == 0
        await until(lambda: host.taken == PIECES + 2)
        await asyncio.sleep(0.05)
        assert host.taken == PIECES + 2  # one was taken, and one waits for room
        await pieces.aclose()  # type: ignore[attr-defined]
        await until(lambda: host.taken == count)
        other = await stream.submit(x(1))
        host.say(host.answers(1, 5))
        assert value(await other) == 5


@on_a_loop
async def test_a_cancelled_stream_ends_pieces_that_nobody_takes() -> None:
    host = AsyncHost()
    stream = begin(host)
    pieces = stream.pieces(x(0))
    taking = asyncio.ensure_future(anext(pieces))
    await until(lambda: len(host.asked) == 1)
    for number in range(PIECES + 20):
        host.say(host.answers(0, number, trailer(0, final=False)))
    assert value(await taking) == 0
    await asyncio.sleep(0.05)
    await stream.cancel()
    assert await code_of(taken(pieces)) is Code.UNAVAILABLE


class ThreadHost(Ear):
    """The same for threads."""

    target = "a test"

    def __init__(self) -> None:
        super().__init__()
        self.listens = threading.Event()
        self.held = threading.Event()
        self.said: queue.Queue[bytes | None] = queue.Queue()

    def stream(self, messages: Iterator[bytes], timeout_s: float) -> Self:
        def listen() -> None:
            for message in messages:
                self.held.set()
                self.listens.wait(60)
                self.hear(message)

        threading.Thread(target=listen, daemon=True).start()
        return self

    def take(self) -> bytes | None:
        return self.said.get(timeout=60)

    def cancel(self) -> None:
        pass


def test_for_threads_too_a_question_can_be_given_up_until_it_is_sent() -> None:
    host = ThreadHost()
    with Stream(place(host), Driver(), outputs=(), in_flight=3) as stream:
        sent = stream.submit(x(0))
        assert host.held.wait(60)  # the first message; the host takes nothing yet
        dropped, kept = [stream.submit(x(n)) for n in (1, 2)]
        assert dropped.cancel()
        host.listens.set()
        deadline = time.monotonic() + 60
        while len(host.asked) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert host.asked == [0, 2]
        assert not sent.cancel()
        host.said.put(host.answers(0, 0))
        host.said.put(host.answers(1, 1))
        assert [value(one.result(60)) for one in (sent, kept)] == [0, 1]
        host.said.put(host.ends(2))
        host.said.put(None)


# Several questions in one unit (SPEC 5.9.8)


def good(value: float) -> bytes:
    return b"\0" + to_response({"x": np.full(1, value, np.float32)}, "wdbc", 7)


def bad(code: Code = Code.INVALID_INPUT) -> bytes:
    return b"".join(map(bytes, questions.refused(code, "refused")))


async def waiting(host: AsyncHost, stream: AsyncStream, count: int) -> list[asyncio.Future[Any]]:
    """One question that is on its way alone, and others that wait behind it."""
    futures = [await stream.submit(x(0))]
    await until(lambda: host.asked == [0])
    futures += [await stream.submit(x(n)) for n in range(1, count)]  # in one turn of the loop
    await until(lambda: len(host.asked) == count)
    return futures


@on_a_loop
async def test_what_waits_is_asked_together_and_answered_each_its_own() -> None:
    host = AsyncHost()
    async with begin(host, in_flight=14, together=5) as stream:
        futures = await waiting(host, stream, 13)
        assert host.together == [1, 5, 1, 5, 1]  # half of what may be unanswered in a message
        assert host.asked == [*range(13)]
        host.say(host.answers_together(7, [good(n) for n in (70, 80, 90, 100, 110)]))
        assert [value(await future) for future in futures[7:12]] == [70, 80, 90, 100, 110]
        refused = [good(10), bad(), good(30), bad(Code.MODEL_FAILED), good(50)]
        host.say(host.answers_together(1, refused))
        assert [value(await futures[at]) for at in (1, 3, 5)] == [10, 30, 50]
        assert [await code_of(futures[at]) for at in (2, 4)] == [
            *(Code.INVALID_INPUT, Code.MODEL_FAILED)
        ]
        host.say(*(host.answers(unit, unit) for unit in (0, 6, 12)))
        assert [value(await futures[at]) for at in (0, 6, 12)] == [0, 6, 12]


@on_a_loop
async def test_how_many_may_be_asked_together_is_learnt_from_an_answer() -> None:
    host = AsyncHost()
    async with begin(host, in_flight=14) as stream:
        futures = await waiting(host, stream, 7)
        assert host.together == [1] * 7
        said = trailer(6)._replace(questions=1)
        host.say(*(host.answers(unit, unit) for unit in range(6)), host.answers(6, 6, said))
        for future in futures:
            await future
        futures = [await stream.submit(x(n)) for n in range(7, 14)]
        await until(lambda: len(host.asked) == 14)
        assert host.together[7:] == [1] * 7
        three = [trailer(unit)._replace(questions=3) for unit in range(7, 14)]
        host.say(*(host.answers(said.unit, 1, said) for said in three))
        for future in futures:
            await future
        futures = [await stream.submit(x(n)) for n in range(14, 21)]
        await until(lambda: len(host.asked) == 21)
        assert host.together[14:] == [3, 3, 1]
        host.say(host.answers_together(14, [good(1)] * 3), host.answers_together(17, [good(2)] * 3))
        host.say(host.answers(20, 3))
        assert [value(await future) for future in futures] == [1, 1, 1, 2, 2, 2, 3]


def one(size: int, rows: int = 1) -> Asked:
    return Asked((), size, AsyncFutureAnswer.__new__(AsyncFutureAnswer), rows)


@pytest.mark.parametrize(
    ("waiting", "units"),
    [
        ([one(100)] * 7, [3, 3, 1]),
        ([one(limits.QUESTIONS_REQUEST)] * 3, [1, 1, 1]),
        ([one(limits.QUESTIONS_REQUEST // 2)] * 3, [2, 1]),
        ([one(100), one(limits.CHUNK), one(100)], [1, 1, 1]),
        ([one(100, rows=2)] * 3, [1, 1, 1]),
        ([one(100, rows=1), one(100, rows=2), one(100, rows=9)], [2, 1]),
        ([], []),
    ],
)
def test_units_are_bounded_by_number_bytes_and_rows(waiting: list[Asked], units: list[int]) -> None:
    assert [*map(len, units_of(waiting, 3))] == units


def test_with_receipts_each_question_has_its_unit() -> None:
    assert place(None, together=9).released.most == 9
    assert place(None, together=9, receipt=True).released.most == 1


@on_a_loop
async def test_a_question_given_up_leaves_no_gap_among_those_it_waited_with() -> None:
    host = AsyncHost()
    async with begin(host, in_flight=10, together=9) as stream:
        first = await stream.submit(x(0))
        await until(lambda: host.asked == [0])
        futures = [await stream.submit(x(n)) for n in range(1, 5)]
        assert futures[1].cancel()
        await until(lambda: len(host.asked) == 4)
        assert host.asked == [0, 1, 3, 4]
        assert host.together == [1, 3]
        host.say(host.answers(0, 0), host.answers_together(1, [good(1), good(3), good(4)]))
        assert value(await first) == 0
        assert [value(await futures[at]) for at in (0, 2, 3)] == [1, 3, 4]


@on_a_loop
async def test_a_refusal_of_the_whole_unit_counts_for_each() -> None:
    host = AsyncHost()
    async with begin(host, in_flight=8, together=9) as stream:
        futures = await waiting(host, stream, 4)
        host.answered += 3
        said = trailer(1, status=Code.UNKNOWN_MODEL)
        host.say(host.answers(0, 0), host.says(host.answer.unit([], said, 0)))
        assert value(await futures[0]) == 0
        assert [await code_of(future) for future in futures[1:]] == [Code.UNKNOWN_MODEL] * 3


@on_a_loop
async def test_another_model_than_was_pinned_answers_none_of_them() -> None:
    host = AsyncHost()
    async with begin(host, in_flight=8, together=9) as stream:
        futures = await waiting(host, stream, 4)
        said = trailer(1)._replace(digest=b"x" * 48)
        host.say(host.answers(0, 0), host.answers_together(1, [good(1)] * 3, said))
        assert [await code_of(future) for future in futures[1:]] == [Code.DIGEST_MISMATCH] * 3


@on_a_loop
async def test_pieces_of_a_question_that_shares_its_unit() -> None:
    host = AsyncHost()
    async with begin(host, in_flight=8, together=9) as stream:
        first = await stream.submit(x(0))
        await until(lambda: host.asked == [0])
        host.listens.clear()
        second = await stream.submit(x(1))
        await until(lambda: host.held == 3)
        pieces = asyncio.create_task(taken(stream.pieces(x(2))))
        await asyncio.sleep(0.05)
        third = await stream.submit(x(3))
        host.listens.set()
        await until(lambda: host.together == [1, 1, 2])
        host.say(*(host.answers(unit, unit) for unit in range(2)))
        host.say(host.answers_together(2, [good(2), good(3)]))
        assert [value(one) for one in await pieces] == [2]
        assert [value(await future) for future in (first, second, third)] == [0, 1, 3]


WRONG: dict[str, tuple[int, list[bytes]]] = {
    "two of three": (1, [good(1)] * 2),
    "four of three": (1, [good(1)] * 4),
    "one, as of one": (1, [good(1)[1:]]),
    "under the number of the second": (2, [good(1)[1:]]),
    "three under the number of one": (0, [good(1)] * 3),
    "three under the number of the second": (2, [good(1)] * 3),
    "three under a number of none": (9, [good(1)] * 3),
    "a part that is neither": (1, [good(1), b"\2" + good(1)[1:], good(1)]),
    "an empty answer": (1, [good(1), b"\0", good(1)]),
    "a refusal that is OK": (
        1,
        [good(1), good(1), b"\1" + cbor.encode({"status": "OK", "detail": ""})],
    ),
}


@pytest.mark.parametrize("how", WRONG)
def test_what_does_not_fit_what_was_asked_together_ends_the_stream(how: str) -> None:
    @on_a_loop
    async def work() -> None:
        host = AsyncHost()
        stream = begin(host, in_flight=8, together=9)
        futures = await waiting(host, stream, 4)
        number, parts = WRONG[how]
        host.say(host.answers_together(number, parts))
        codes = [await code_of(future) for future in futures]
        assert codes == [Code.ANSWER_OPEN_FAILED] * 4
        assert await code_of(stream.aclose()) is Code.ANSWER_OPEN_FAILED

    work()


@on_a_loop
async def test_an_answer_to_several_comes_once() -> None:
    host = AsyncHost()
    stream = begin(host, in_flight=8, together=9)
    futures = await waiting(host, stream, 4)
    host.say(host.answers_together(1, [good(1)] * 3))
    assert [value(await future) for future in futures[1:]] == [1] * 3
    host.say(host.answers_together(1, [good(2)] * 3))
    assert await code_of(futures[0]) is Code.ANSWER_OPEN_FAILED
    assert await code_of(stream.aclose()) is Code.ANSWER_OPEN_FAILED
