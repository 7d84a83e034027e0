"""A connection that answers what has arrived together: nobody waits long (SPEC 9.2.1)."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from casemate import limits, numbered
from casemate.errors import Code, FrameError
from casemate.frames import ANSWER, FrameType
from casemate_enclave.context import Unsent
from casemate_enclave.crew import Crew
from casemate_enclave.numbered_link import NumberedLink
from casemate_enclave.turns import TurnConnection
from tests.support.attacker import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.numbered import Numbered
    from casemate.wire import Buffer
    from casemate_enclave.context import RequestContext
    from casemate_enclave.runs import Steps


LONG_MS = 90_000  # no deadline passes before a test is over


class Side:
    """The host's end of one connection; what a question does is written in it."""

    def __init__(self, crew: Crew | None = None) -> None:
        self.near, far = socket.socketpair()
        self.near.settimeout(60)
        self.gate = threading.Event()
        self.begun: list[bytes] = []
        self.deadlines: list[float] = []
        self.error: Exception | None = None
        self._answers = numbered.FrameBuffer(FrameType.NUMBERED | ANSWER, limits.FRAME_MAX)
        self.finishing = False
        self.unsent = Unsent()
        self.connection = TurnConnection(
            *(far, self._answer, crew or Crew()),
            finishing=lambda: self.finishing,
            unsent=self.unsent,
        )
        self._far = far
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def start(self, first: bytes = b"first") -> None:
        asked = numbered.Numbered(0, FrameType.REQUEST, first, LONG_MS)
        self._first = asked
        self.thread.start()

    def _serve(self) -> None:
        with self._far:
            try:
                self.connection.serve(self._first)
            except (FrameError, OSError) as error:
                self.error = error

    def _answer(
        self, kind: int, payload: memoryview, deadline: float, context: RequestContext
    ) -> Steps[tuple[int, tuple[Buffer, ...]]]:
        text = bytes(payload)
        if text.startswith((b"endless", b"wait", b"work")):
            yield None
        self.begun.append(text)
        self.deadlines.append(deadline)
        if text.startswith(b"endless"):
            return kind | ANSWER, (b"ended" if context.wait(60) else b"late",)
        if text.startswith(b"wait"):
            self.gate.wait(60)
        if text.startswith(b"work"):
            until = time.thread_time() + 0.002
            while time.thread_time() < until:
                pass
        if text.endswith(b"large"):
            context.hold((bytes(2 << 20),))
            return kind | ANSWER, (bytes(1 << 20), bytes(1 << 20))
        if text.endswith(b"huge"):
            return kind | ANSWER, (bytes(limits.FRAME_MAX),)
        return kind | ANSWER, (b"re:", payload)

    def send(self, number: int, payload: bytes, budget: int = LONG_MS) -> None:
        self.near.sendall(b"".join(numbered.question(number, FrameType.REQUEST, payload, budget)))

    def cancel(self, number: int) -> None:
        self.near.sendall(b"".join(numbered.cancel(number)))

    def receive(self) -> Numbered:
        while (frame := self._answers.take()) is None:
            data = self.near.recv(1 << 16)
            if not data:
                raise ConnectionError
            self._answers.add(data)
        return frame


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    made.start()
    assert made.receive()[:3] == (0, 0x83, b"re:first")
    yield made
    made.gate.set()
    made.near.close()
    made.thread.join(60)
    assert not made.thread.is_alive()


def test_answers_carry_the_numbers_of_their_questions(side: Side) -> None:
    for number in range(1, 200):
        side.send(number, b"%d" % number)
    answers = {frame.number: frame.payload for frame in (side.receive() for _ in range(199))}
    assert answers == {number: b"re:%d" % number for number in range(1, 200)}


def test_nobody_waits_for_a_slow_one(side: Side) -> None:
    """Not even those that arrived with it, behind it."""
    questions = [(1, b"quick"), (2, b"wait"), (3, b"quick"), (4, b"wait"), (5, b"quick")]
    side.near.sendall(
        b"".join(
            piece
            for number, payload in questions
            for piece in numbered.question(number, FrameType.REQUEST, payload, LONG_MS)
        )
    )
    assert {side.receive().number for _ in range(3)} == {1, 3, 5}
    side.gate.set()
    assert {side.receive().number for _ in range(2)} == {2, 4}


def test_where_answers_are_slow_questions_run_side_by_side(side: Side) -> None:
    for number in range(1, 20):
        side.send(number, b"work")
        assert side.receive().number == number
    for number in range(20, 40):
        side.send(number, b"wait")
    assert eventually(lambda: side.begun.count(b"wait") == 20)
    side.gate.set()
    assert {side.receive().number for _ in range(20)} == set(range(20, 40))


def test_the_budget_becomes_a_deadline(side: Side) -> None:
    for number, budget_ms, budget_s in ((1, 2000, 2.0), (2, 0, 30.0)):
        asked = time.monotonic()
        side.send(number, b"x", budget=budget_ms)
        side.receive()
        assert asked <= side.deadlines[-1] - budget_s <= time.monotonic()


def test_large_answers_come_whole_and_a_slow_reader_gets_them(side: Side) -> None:
    side.send(1, b"large")
    side.send(2, b"quick")
    time.sleep(0.1)
    answers = {frame.number: len(frame.payload) for frame in (side.receive(), side.receive())}
    assert answers == {1: 2 << 20, 2: len(b"re:quick")}


def test_questions_in_pieces(side: Side) -> None:
    whole = b"".join(numbered.question(9, FrameType.REQUEST, b"pieces", 0))
    for at in range(len(whole)):
        side.near.sendall(whole[at : at + 1])
        time.sleep(0.002)
    assert side.receive().payload == b"re:pieces"


def test_what_is_under_way_is_answered_when_this_side_ends_the_reading(side: Side) -> None:
    side.send(1, b"wait")
    assert eventually(lambda: b"wait" in side.begun)
    side.finishing = True
    side._far.shutdown(socket.SHUT_RD)
    side.gate.set()
    assert side.receive()[:3] == (1, 0x83, b"re:wait")
    side.thread.join(60)
    assert not side.thread.is_alive()


def test_anything_but_a_numbered_frame_ends_the_connection(side: Side) -> None:
    side.near.sendall(b"\x00\x00\x00\x05\x08\x00\x00\x00\x00")
    with contextlib.suppress(ConnectionError):
        while True:
            side.receive()
    side.thread.join(60)
    assert isinstance(side.error, FrameError | None)
    assert not side.thread.is_alive()


def test_the_first_question_may_be_the_wrong_length() -> None:
    made = Side()
    made.start()
    made.receive()
    made.near.sendall(b"\x00\x01\x00\x0b\x20" + bytes(9))  # one byte above the bound
    made.thread.join(60)
    assert isinstance(made.error, FrameError)
    assert made.error.code is Code.TOO_LARGE
    made.near.close()


def test_without_threads_to_spare_the_questions_wait() -> None:
    crew = Crew(1)
    side = Side(crew)
    side.start()
    side.receive()
    for number in range(1, 5):
        side.send(number, b"wait")
    assert eventually(lambda: side.begun.count(b"wait") == 2)
    time.sleep(0.1)
    assert side.begun.count(b"wait") == 2  # the connection's own and the one place
    side.gate.set()
    assert {side.receive().number for _ in range(4)} == {1, 2, 3, 4}
    side.near.close()
    side.thread.join(60)
    assert crew.join()  # the place was given back


def test_a_host_that_takes_nothing_is_left_once_and_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not once for each answer that waits for it; and nothing follows the frame that was cut."""
    monkeypatch.setattr(limits, "FRAME_HEAD_TIMEOUT_S", 0.5)
    stalls: list[str] = []
    wait = NumberedLink._wait

    def counted(link: NumberedLink, event: int, until: float) -> None:
        try:
            wait(link, event, until)
        except TimeoutError:
            stalls.append("once")
            raise

    monkeypatch.setattr(NumberedLink, "_wait", counted)
    crew = Crew(8)
    side = Side(crew)
    side.start()
    side.receive()
    for number in range(1, 9):
        side.send(number, b"wait")
    assert eventually(lambda: side.begun.count(b"wait") == 8)
    for number in range(9, 12):
        side.send(number, b"large")
    side.gate.set()
    side.thread.join(60)
    assert not side.thread.is_alive()
    assert stalls == ["once"]
    with contextlib.suppress(ConnectionError):
        for _ in range(12):
            assert len(side.receive().payload) in {len(b"re:wait"), 2 << 20}
    side.near.close()


@pytest.mark.parametrize("text", [b"huge", b"wait, huge"], ids=["who reads", "another thread"])
def test_an_answer_that_fits_in_no_frame_ends_the_connection(text: bytes) -> None:
    """Whichever thread has made it: the host must not wait for what never comes."""
    side = Side()
    side.start()
    side.receive()
    side.send(1, text)
    side.gate.set()
    with pytest.raises(ConnectionError):
        side.receive()
    side.thread.join(60)
    assert not side.thread.is_alive()
    side.near.close()


# Questions given up


def begun(side: Side, text: bytes, count: int = 1) -> bool:
    return eventually(lambda: side.begun.count(text) >= count)


def test_a_question_that_is_given_up_ends_and_is_answered_once(side: Side) -> None:
    """While its thread is busy with it, and whatever else is asked meanwhile."""
    side.send(1, b"endless")
    assert begun(side, b"endless")
    side.send(2, b"quick")
    assert side.receive().number == 2
    side.cancel(1)
    assert side.receive()[:3] == (1, 0x83, b"ended")
    side.cancel(1)  # once more, and one that never was: nobody is harmed
    side.cancel(77)
    side.send(1, b"again")
    assert side.receive()[:3] == (1, 0x83, b"re:again")


def test_only_the_question_of_that_number_ends(side: Side) -> None:
    for number in range(1, 9):
        side.send(number, b"endless")
    assert begun(side, b"endless", 8)
    for number in (3, 7):
        side.cancel(number)
    assert {side.receive().number for _ in range(2)} == {3, 7}
    side.near.settimeout(0.2)
    with pytest.raises(TimeoutError):
        side.receive()
    side.near.settimeout(60)
    for number in (1, 2, 4, 5, 6, 8):
        side.cancel(number)
    assert {side.receive().number for _ in range(6)} == {1, 2, 4, 5, 6, 8}


def test_threads_that_nobody_needs_end_and_give_their_places_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "THREAD_IDLE_S", 0.05)
    side = Side(crew := Crew(8))
    with side.near:
        side.start()
        assert side.receive().payload == b"re:first"
        for _ in range(2):
            side.begun.clear()
            for number in range(8):
                side.send(number, b"wait")
            assert eventually(lambda: len(side.begun) == 8)
            assert crew._left < 3
            side.gate.set()
            assert {side.receive().number for _ in range(8)} == set(range(8))
            side.gate.clear()
            assert eventually(lambda: crew._left >= 7)  # one may be who reads at last
        side.send(9, b"wait")
        side.send(10, b"quick")  # one that stands by is kept
        assert side.receive().number == 10
        side.gate.set()
        assert side.receive().number == 9
    side.thread.join(60)
    assert not side.thread.is_alive()


def test_cancel_frames_are_read_where_no_thread_is_left() -> None:
    """Neither for a question that runs, nor for one that waits for a thread."""
    side = Side(Crew(0))
    side.start()
    side.receive()
    side.send(1, b"endless")
    assert begun(side, b"endless")
    side.send(2, b"parked")
    side.send(3, b"parked too")
    side.cancel(2)
    assert side.receive()[:2] == (2, 0xFF)
    side.cancel(1)
    assert side.receive()[:3] == (1, 0x83, b"ended")
    assert side.receive()[:3] == (3, 0x83, b"re:parked too")
    assert b"parked" not in side.begun
    side.near.close()
    side.thread.join(60)
    assert not side.thread.is_alive()


def test_questions_beyond_those_that_may_wait_are_refused_unread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "NUMBERED_WAITING", 4)
    side = Side(Crew(0))
    side.start()
    side.receive()
    side.send(1, b"endless")
    assert begun(side, b"endless")
    for number in range(2, 9):
        side.send(number, b"%d" % number)
    refused = [side.receive() for _ in range(3)]
    assert [(frame.number, frame.type) for frame in refused] == [(6, 0xFF), (7, 0xFF), (8, 0xFF)]
    assert all(b"OVERLOADED" in frame.payload for frame in refused)
    side.cancel(1)
    assert {side.receive().number for _ in range(5)} == {1, 2, 3, 4, 5}
    side.near.close()
    side.thread.join(60)
    assert not side.thread.is_alive()


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_with_the_connection_end_its_questions(how: int) -> None:
    side = Side()
    side.start()
    side.receive()
    for number in range(1, 5):
        side.send(number, b"endless")
    assert begun(side, b"endless", 4)
    side.near.shutdown(how)
    side.thread.join(60)
    assert not side.thread.is_alive()
    with contextlib.suppress(ConnectionError):
        assert side.receive().number > 4  # nothing that was ended is answered
    side.near.close()


def test_a_cancel_frame_with_a_payload_ends_the_connection(side: Side) -> None:
    side.near.sendall(b"".join(numbered.question(1, FrameType.CANCEL, b"x", 0)))
    side.thread.join(60)
    assert isinstance(side.error, FrameError | None)
    assert not side.thread.is_alive()


# Bytes


def test_a_frame_has_one_deadline_however_it_dribbles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then holds the connection no longer than none at all."""
    monkeypatch.setattr(limits, "FRAME_HEAD_TIMEOUT_S", 0.5)
    side = Side()
    side.start()
    side.receive()
    whole = b"".join(numbered.question(9, FrameType.REQUEST, b"x" * 1000, 0))

    def dribble() -> None:
        for at in range(len(whole)):
            side.near.sendall(whole[at : at + 1])
            time.sleep(0.05)

    with pytest.raises(OSError, match="Broken pipe"):  # long before the last byte
        dribble()
    side.thread.join(60)
    assert not side.thread.is_alive()
    side.near.close()


def test_an_answer_counts_as_unsent_until_the_host_has_taken_it(side: Side) -> None:
    for number in range(1, 5):
        side.send(number, b"wait, large")
    assert begun(side, b"wait, large", 4)
    side.gate.set()
    assert eventually(lambda: side.unsent._size == 4 * (2 << 20))
    for left in (3, 2, 1, 0):
        side.receive()
        # The next one may be on its way, as far as the kernel takes it.
        assert side.unsent._size <= (left + 1) * (2 << 20)
    assert eventually(lambda: side.unsent._size == 0)


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_answers_that_nobody_will_take_count_no_longer(how: int) -> None:
    side = Side()
    side.start()
    side.receive()
    for number in range(1, 5):
        side.send(number, b"wait, large")
    assert begun(side, b"wait, large", 4)
    side.gate.set()
    assert eventually(lambda: side.unsent._size == 4 * (2 << 20))
    side.near.shutdown(how)
    side.near.close()
    side.thread.join(60)
    assert not side.thread.is_alive()
    assert side.unsent._size == 0
