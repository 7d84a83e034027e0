"""What lies between the threads of a stream (SPEC 5.9.6), and models in steps (SPEC 8.9)."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate import limits
from casemate.envelope.messages import Trailer
from casemate.errors import Code, FrameError, RequestError
from casemate.frames import FrameType, send_frame
from casemate.limits import MIB
from casemate.sealed_model import LoopState, ModelLoop
from casemate_enclave import streams
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.events import Journal
from casemate_enclave.looping import last_piece, pieces
from casemate_enclave.shares import Owner
from casemate_enclave.stream_answers import Answered, StreamQuestion
from casemate_enclave.stream_desk import ClosedError, Desk
from casemate_enclave.stream_link import HungUpError, StreamLink
from casemate_enclave.stream_memory import StreamMemory
from casemate_enclave.stream_places import StreamPlaces
from casemate_enclave.streams import Stream
from tests.support.attacker import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from casemate_enclave.stream_groups import Back


SOON = 60.0
ME = Owner(b"me", listed=False)


def later(act: Callable[[], object], after_s: float = 0.1) -> threading.Timer:
    timer = threading.Timer(after_s, act)
    timer.start()
    return timer


class Run:
    terminate = False


# Cancellation


def test_a_cancellation_ends_what_runs_and_what_will() -> None:
    cancellation = Cancellation()
    before, during, after = Run(), Run(), Run()
    with cancellation.ending(before):
        pass
    with cancellation.ending(during):
        cancellation.cancel()
        cancellation.cancel()
    with cancellation.ending(after):
        pass
    assert (before.terminate, during.terminate, after.terminate) == (False, True, True)
    assert cancellation.cancelled
    assert cancellation.wait(0)


# Memory


def test_whoever_waits_learns_of_a_cancellation_at_once() -> None:
    cancellation = Cancellation()
    later(cancellation.cancel)
    begun = time.monotonic()
    assert cancellation.wait(600)
    assert time.monotonic() - begun < SOON


def test_memory_is_shared_and_waited_for() -> None:
    memory = StreamMemory(100 * MIB)
    memory.take(ME, 60 * MIB, _never)
    with pytest.raises(RequestError) as caught:
        memory.take(ME, 101 * MIB, _never)
    assert caught.value.code is Code.TOO_LARGE
    timer = later(lambda: memory.free(ME, 60 * MIB))
    memory.take(ME, 100 * MIB, lambda: None)
    timer.join()
    assert memory.used == 100 * MIB


def test_a_unit_of_one_chunk_need_not_wait_for_a_long_one() -> None:
    """Not those of whoever sends the long one, and of others some beyond that."""
    memory = StreamMemory(8 * limits.CHUNK)
    memory.take(ME, 8 * limits.CHUNK, _never)

    def give_up() -> None:
        raise TimeoutError

    for _ in range(limits.STREAM_UNITS_MAX - 2):
        memory.take(ME, limits.CHUNK, _never)
    with pytest.raises(TimeoutError):
        memory.take(ME, limits.CHUNK, give_up)
    for name in (b"a", b"b"):
        memory.take(Owner(name, listed=False), limits.CHUNK, _never)
    other = Owner(b"c", listed=False)
    for size in (1, limits.CHUNK + 1):
        with pytest.raises(TimeoutError):
            memory.take(other, size, give_up)
    memory.free(ME, 8 * limits.CHUNK)
    memory.take(other, limits.CHUNK, _never)
    with pytest.raises(TimeoutError):
        memory.take(other, limits.CHUNK + 1, give_up)


def test_whoever_waits_for_memory_can_give_up() -> None:
    memory = StreamMemory(10 * MIB)
    memory.take(ME, 10 * MIB, _never)

    def give_up() -> None:
        raise HungUpError

    with pytest.raises(HungUpError):
        memory.take(ME, 2 * MIB, give_up)
    assert memory.used == 10 * MIB


def _never() -> None:
    raise AssertionError("nothing to wait for")


# The desk


def question(unit: int = 0, count: int = 1) -> StreamQuestion:
    return StreamQuestion(unit, [memoryview(b"message")] * count, 1024)


def taken(desk: Desk, most: int = 1) -> list[int]:
    task = desk.next_task(lambda: most)
    assert isinstance(task, list)
    return [one.unit for one in task]


def answered(unit: int = 0, *, final: bool = True, size: int = 10, count: int = 1) -> Answered:
    return Answered([[bytes(size)]] * count, Trailer(Code.OK, unit=unit, final=final), count)


def test_questions_and_answers_pass_in_order() -> None:
    desk = Desk()
    assert desk.ask(question(0)) == 1  # nobody is idle
    desk.ask(question(1))
    assert taken(desk) + taken(desk) == [0, 1]
    desk.answer(answered(1))
    desk.answer(answered(0))
    answers = desk.next_answers()
    assert [one.trailer.unit for one in answers] == [1, 0]
    desk.sent(answers)
    desk.await_room(_never, below=1)


def test_workers_are_lacking_for_as_many_questions_as_nobody_takes() -> None:
    desk = Desk()
    three = [question(unit) for unit in range(3)]
    assert desk.ask(*three) == 3
    assert desk.ask(*three, at_once=4) == 2
    assert taken(desk, 4) == [0, 1, 2, 0]
    assert taken(desk, 4) == [1, 2]
    takers = [threading.Thread(target=desk.next_task) for _ in range(2)]
    for taker in takers:
        taker.start()
    assert eventually(lambda: desk._idle == 2)
    assert desk.ask(*three) == 1
    for taker in takers:
        taker.join(SOON)
    assert taken(desk) == [2]


def test_answers_that_take_long_are_carried_on_first_and_whatever_happens() -> None:
    """Their runs are under way, and hold a place until somebody has waited for them."""
    ended: list[str] = []

    def answers(name: str) -> Generator[Back]:
        try:
            yield []
        finally:
            ended.append(name)

    first, second, third = answers("first"), answers("second"), answers("third")
    for begun in (first, second, third):
        next(begun)
    desk = Desk()
    desk.ask(question())
    assert desk.leave(first) == 1
    desk.leave(second)
    assert desk.next_task() is first
    desk.close()
    assert desk.next_task() is second
    with pytest.raises(ClosedError):
        desk.next_task()
    desk.leave(third)
    desk.end_what_is_left()
    assert ended == ["third"]


def test_who_has_a_hand_for_what_is_left_is_counted_without_those_that_questions_wait_for() -> None:
    def answers() -> Generator[Back]:
        yield []

    desk = Desk()
    assert not desk.has_hand(0)
    assert desk.has_hand(1)
    desk.ask(question())
    assert not desk.has_hand(1)
    assert desk.has_hand(2)
    desk.leave(answers())
    assert not desk.has_hand(2)
    desk.next_task()
    desk.next_task()
    waiting = threading.Thread(target=desk.next_task)
    waiting.start()
    while not desk.has_hand(0):
        time.sleep(0.001)
    desk.ask(question())
    waiting.join()
    assert not desk.has_hand(0)


class QuickAnswering:
    """Is quick, and begins nothing."""

    quick = True

    def together(self) -> int:
        """As ``Answering``."""
        return 8


@pytest.fixture
def stream() -> Iterator[Stream]:
    near, far = socket.socketpair()
    with near, far:
        link = StreamLink(near, time.monotonic() + 60)
        yield Stream(link, StreamMemory(MIB), time.monotonic() + 60, Journal())


def test_the_reader_sends_nothing_while_a_group_is_under_way(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client may not take it, and the group holds a place of the model."""
    first, second = (question(0), answered(0)), (question(1), answered(1))

    def under_way(*_arguments: object) -> Generator[Back]:
        yield [first]
        yield []
        yield [second]

    monkeypatch.setattr(streams, "answer_together", under_way)
    fake: Any = QuickAnswering()
    stream.take(first[0].taken + second[0].taken)
    stream._answer_here([first[0], second[0]], fake)  # it has nothing to send with
    answers = stream._desk.next_answers()
    while len(answers) < 2:
        answers += stream._desk.next_answers()
    stream._stop()
    for worker in stream._workers:
        worker.join(SOON)
    assert answers == [first[1], second[1]]
    assert not stream._broken


def test_the_reader_begins_no_run_that_no_worker_could_carry_on(stream: Stream) -> None:
    """All workers may be waiting for the place that such a run holds."""
    fake: Any = QuickAnswering()
    stream._answering = fake
    stream._workers = [threading.current_thread()] * limits.STREAM_WORKERS
    asked = question()
    stream._read_ahead = [asked]
    stream._hand_on()
    assert stream._desk.next_task() == [asked]


def test_what_the_reader_answers_itself_counts_likewise() -> None:
    desk = Desk()
    desk.begin(limits.STREAM_UNITS_MAX - 1)
    assert desk.room == 1
    desk.done([answered()] * (limits.STREAM_UNITS_MAX - 1))
    desk.await_room(_never, below=1)


def test_each_message_of_a_unit_counts() -> None:
    desk = Desk()
    desk.ask(question(0, 20), question(20))
    desk.begin(10)
    assert desk.room == limits.STREAM_UNITS_MAX - 31
    desk.done([answered(21, count=10)])
    desk.answer(answered(0, count=20))
    desk.sent(desk.next_answers())
    assert desk.room == limits.STREAM_UNITS_MAX - 1


def test_a_question_counts_until_its_final_answer_is_sent() -> None:
    desk = Desk()
    desk.ask(question())
    desk.answer(answered(final=False))
    desk.sent(desk.next_answers())
    with pytest.raises(AssertionError):
        desk.await_room(_never, below=1)
    desk.answer(answered())
    timer = later(lambda: desk.sent(desk.next_answers()))
    desk.await_room(lambda: None, below=1)
    timer.join()


@pytest.mark.parametrize(
    ("count", "size"), [(limits.STREAM_UNITS_MAX, 1), (1, limits.STREAM_READY_MAX)]
)
def test_answers_wait_while_too_many_are_ready(count: int, size: int) -> None:
    desk = Desk()
    for unit in range(count):
        desk.answer(answered(unit, size=size))
    late = threading.Thread(target=desk.answer, args=(answered(99),))
    late.start()
    late.join(0.2)
    assert late.is_alive()
    desk.sent(desk.next_answers())
    late.join(SOON)
    assert [one.trailer.unit for one in desk.next_answers()] == [99]


def test_short_answers_whose_group_may_hold_a_place_wait_for_no_client() -> None:
    desk = Desk()
    desk.answer(answered(0, size=limits.STREAM_READY_MAX))
    short = threading.Thread(
        target=desk.answer, args=(answered(1),), kwargs={"placed": True}, daemon=True
    )
    short.start()
    short.join(SOON)
    assert not short.is_alive()
    long = answered(2, size=2 * limits.WORKER_INLINE_MAX + 1)
    late = threading.Thread(target=desk.answer, args=(long,), kwargs={"placed": True})
    late.start()
    late.join(0.2)
    assert late.is_alive()
    answers = desk.next_answers()
    assert [one.trailer.unit for one in answers] == [0, 1]
    desk.sent(answers)
    late.join(SOON)
    assert [one.trailer.unit for one in desk.next_answers()] == [2]


def test_finishing_and_closing_wake_everybody() -> None:
    desk = Desk()
    timer = later(desk.finish)
    assert desk.next_answers() == []
    timer.join()
    with pytest.raises(ClosedError):
        desk.next_task()
    desk = Desk()
    desk.ask(question())
    desk.answer(answered())
    desk.close()
    with pytest.raises(ClosedError):
        desk.next_task()
    with pytest.raises(ClosedError):
        desk.answer(answered())
    assert desk.next_answers() == []


# The link


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, StreamLink]]:
    host, enclave = socket.socketpair()
    with host, enclave:
        host.settimeout(SOON)
        yield host, StreamLink(enclave, time.monotonic() + SOON)


def test_a_link_knows_messages_ends_and_strangers(ends: tuple[socket.socket, StreamLink]) -> None:
    host, link = ends
    send_frame(host, FrameType.STREAM, b"message")
    send_frame(host, FrameType.STREAM, b"")
    send_frame(host, FrameType.REQUEST, b"x")
    assert bytes(link.receive() or b"") == b"message"
    assert link.receive() is None
    with pytest.raises(FrameError):
        link.receive()


def test_a_link_bounds_messages(ends: tuple[socket.socket, StreamLink]) -> None:
    host, link = ends
    too_long = threading.Thread(
        target=send_frame, args=(host, FrameType.STREAM, bytes(limits.STREAM_MESSAGE_MAX + 1))
    )
    too_long.start()
    with pytest.raises(FrameError) as caught:
        link.receive()
    assert caught.value.code is Code.TOO_LARGE
    too_long.join(SOON)


def test_a_link_notices_that_the_host_is_gone(ends: tuple[socket.socket, StreamLink]) -> None:
    host, link = ends
    link.check()
    send_frame(host, FrameType.STREAM, b"message")
    link.check()
    host.close()
    with pytest.raises(HungUpError):
        link.check()  # although there is something to read
    assert link.receive() is not None
    with pytest.raises(HungUpError):
        link.receive()
    with pytest.raises(HungUpError):
        link.send((b"answer",))


def test_a_link_waits_no_longer_than_its_deadline() -> None:
    host, enclave = socket.socketpair()
    begun = time.monotonic()
    with host, enclave, pytest.raises(TimeoutError):
        StreamLink(enclave, begun + 0.5).receive()
    assert 0.4 < time.monotonic() - begun < SOON


def test_a_link_that_expires_says_that_the_life_is_over(
    ends: tuple[socket.socket, StreamLink],
) -> None:
    _, link = ends
    later(link.expire)
    for attempt in (link.receive, link.check):
        with pytest.raises(FrameError) as caught:
            attempt()
        assert caught.value.code is Code.UNAVAILABLE


def test_hanging_up_wakes_the_other_thread(ends: tuple[socket.socket, StreamLink]) -> None:
    _, link = ends
    later(link.hang_up)
    with pytest.raises(HungUpError):
        link.receive()


# Places and steps


class Model:
    """Counts up; refuses and fails as told."""

    quick = False

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.runs = 0

    def run(
        self,
        inputs: Any,  # noqa: ANN401 - arrays by name
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None = None,
        *,
        repeated: bool = False,
        meanwhile: Callable[[], None] | None = None,
    ) -> Any:  # noqa: ANN401 - likewise
        assert not repeated
        assert meanwhile is None
        if self.refusals:
            self.refusals -= 1
            raise RequestError(Code.OVERLOADED, "too many")
        self.runs += 1
        n = inputs["n"] + 1
        values = {"next": n, "square": n * n, "done": n >= inputs["limit"], "two": np.ones(2, bool)}
        return {name: values[name] for name in outputs}

    def begin(self, _runs: Sequence[Any]) -> None:
        """Nothing: it is not quick."""

    def offer(self, _runs: Sequence[Any], _asker: Any) -> set[object]:  # noqa: ANN401
        """Nothing: streams wait on threads of their own."""
        return set()


def deadline() -> float:
    return time.monotonic() + SOON


def count_to(limit: int) -> dict[str, np.ndarray]:
    return {"n": np.zeros(1, np.float32), "limit": np.full(1, limit, np.float32)}


def squares(
    loop: ModelLoop | None, limit: int, until: float | None = None
) -> list[tuple[float, bool]]:
    steps = pieces(
        *(Model(), loop, count_to(limit), ["square"]),
        deadline=until or deadline(),
        cancellation=Cancellation(),
    )
    return [(float(values["square"][0]), final) for values, final in steps]


LOOP = ModelLoop((LoopState("next", "n"),), "done", steps=5)


def test_a_model_without_a_loop_is_one_step() -> None:
    assert squares(None, 1) == [(1, True)]


def test_steps_go_on_until_the_model_says_stop_or_the_publisher() -> None:
    assert squares(LOOP, 3) == [(1, False), (4, False), (9, True)]
    assert [value for value, _ in squares(LOOP, 99)] == [1, 4, 9, 16, 25]
    endless = ModelLoop((LoopState("next", "n"),), None, steps=2)
    assert squares(endless, 1) == [(1, False), (4, True)]
    assert last_piece(Model(), LOOP, count_to(4), ["square"], deadline=deadline())["square"] == [16]


def test_a_stop_of_several_elements_fails_the_model() -> None:
    with pytest.raises(RequestError) as caught:
        squares(ModelLoop((LoopState("next", "n"),), "two", steps=5), 3)
    assert caught.value.code is Code.MODEL_FAILED


def test_steps_are_paced_and_the_pace_ends_with_the_deadline() -> None:
    paced = ModelLoop((LoopState("next", "n"),), "done", steps=5, interval=40)
    begun = time.monotonic()
    assert len(squares(paced, 3)) == 3
    assert time.monotonic() - begun >= 0.12
    slow = dataclasses.replace(paced, interval=60_000)  # none is due before the deadline
    with pytest.raises(RequestError) as caught:
        squares(slow, 5, time.monotonic() + 30)
    assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_streams_wait_where_a_request_would_be_refused() -> None:
    model = Model(refusals=3)
    waiting = StreamPlaces(1).waiting(model, ME)
    assert waiting.run(count_to(1), ["next"], deadline())["next"] == [1]
    assert (model.refusals, model.runs) == (0, 1)


def test_a_place_is_given_up_when_nobody_waits_any_more() -> None:
    places = StreamPlaces(1)
    assert places._shares.try_take(ME)
    cancellation = Cancellation()
    later(cancellation.cancel)
    begun = time.monotonic()
    with pytest.raises(RequestError) as caught:
        places.waiting(Model(), ME).run(count_to(1), ["next"], begun + 600, cancellation)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < SOON
    with pytest.raises(RequestError):
        places.waiting(Model(), ME).run(count_to(1), ["next"], time.monotonic() + 0.15)
    places._shares.free(ME)
    places.waiting(Model(), ME).run(count_to(1), ["next"], deadline())
    places.waiting(Model(), ME).run(count_to(1), ["next"], deadline())
