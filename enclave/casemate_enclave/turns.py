"""A connection with many exchanges under way: its threads take turns at reading (SPEC 9.2.1).

Whoever has the turn takes what has arrived, answers one question after another, and sends the
answers together before it waits for more. Small requests are spared what costs them most: waking a
thread, and passing the interpreter's lock. No question waits long for another one's answer: a
thread gives the turn away before it answers where answers have just been slow, and a second one
stands by to take it from a thread that is not back in time. So somebody always reads, be it only
that a question has been given up: without a thread to stand by, questions wait and are not begun.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from casemate import limits, numbered
from casemate.errors import Code, FrameError
from casemate.frames import ERROR, FrameType, encode_error
from casemate_enclave.context import RequestContext, Unsent
from casemate_enclave.numbered_link import NumberedLink

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from casemate.numbered import Numbered
    from casemate.wire import Buffer

    # Takes inner type, payload, deadline and the question's context; returns inner type and
    # payload. Never raises.
    Answer = Callable[[int, memoryview, float, RequestContext], tuple[int, tuple[Buffer, ...]]]

# An answer as quick as this may keep others waiting. By the processor's time: on a busy machine
# the clock says little about an answer.
_QUICK_S: Final = 0.001
_WARY: Final = 32  # quick answers in a row that it takes to trust in the next one
_LATE_S: Final = 0.005  # then the turn is taken away
_IDLE_LOOK_S: Final = 0.05
_SPARE: Final = 2  # that stand by: one is enough


class Crew:
    """How many threads all connections together may have beside two of their own; thread-safe."""

    def __init__(self, most: int = limits.NUMBERED_THREADS) -> None:
        self._lock = threading.Lock()
        self._left = most

    def join(self) -> bool:
        """Take a place; False if there is none."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self._left += 1


class _Question(NamedTuple):
    """A question, when it came, and what goes along with it."""

    frame: Numbered
    begun: float
    context: RequestContext


class TurnConnection:
    """Answers the numbered questions of one connection, until it ends."""

    def __init__(
        self,
        channel: socket.socket,
        answer: Answer,
        crew: Crew,
        *,
        finishing: Callable[[], bool],
        unsent: Unsent,
    ) -> None:
        """``channel`` becomes blocking, and is not closed.

        ``finishing``: whether it was this side that ended the reading, to answer what is under way.
        """
        self._link = NumberedLink(channel)
        self._answer = answer
        self._crew = crew
        self._finishing = finishing
        self._unsent = unsent
        self._changed = threading.Condition()
        self._held = False
        self._turn = 0
        self._begun = 0.0  # when the holder of the turn began an answer; 0 while it reads
        self._wary = 0
        self._idle = 0  # threads that stand by, or are about to
        self._spare_since = 0.0  # since when more than one of them does
        self._others = 0
        self._over = False
        self._first: Numbered | None = None
        self._under_way: dict[int, RequestContext] = {}
        self._parked: deque[_Question] = deque()

    def serve(self, first: Numbered) -> None:
        """Answer everything until the host ends the connection, ``first`` being its first frame.

        Raises FrameError for what is no numbered frame, OSError if the host takes no answers.
        """
        self._first = first
        try:
            self._work()
        finally:
            with self._changed:
                self._changed.wait_for(lambda: not self._others)

    def _work(self, *, hired: bool = False, placed: bool = False) -> None:
        expected = hired
        try:
            while (turn := self._await_turn(expected=expected, placed=placed)) is not None:
                expected = False
                if isinstance(turn, _Question):
                    self._link.put(self._answered(turn), turn.context)
                    self._link.flush()
                else:
                    self._take_turn(turn)
        except BaseException:
            self._abandon()
            self._end()
            raise

    # Turns

    def _await_turn(self, *, expected: bool, placed: bool) -> int | _Question | None:
        """Return the number of this thread's turn, or a question that waits for a thread.

        None when the connection is over, or has more threads than it needs; then one ends of those
        that are ``placed``. ``expected``: this thread was counted as idle before.
        """
        with self._changed:
            if not expected:
                self._idle += 1
                if self._idle == _SPARE:
                    self._spare_since = time.monotonic()
            while self._held and not (self._over or self._parked or self._is_late()):
                if placed and self._has_spare():
                    self._idle -= 1
                    return None
                self._changed.wait(_LATE_S if self._begun else _IDLE_LOOK_S)
            self._idle -= 1
            if self._parked:
                return self._parked.popleft()
            if self._over:
                return None
            self._held = True
            self._begun = 0.0
            self._turn += 1
            return self._turn

    def _has_spare(self) -> bool:
        """Whether one more than is needed has stood by for long; the next one is as long in coming.

        The caller holds the lock.
        """
        now = time.monotonic()
        if self._idle < _SPARE or now - self._spare_since < limits.THREAD_IDLE_S:
            return False
        self._spare_since = now
        return True

    def _is_late(self) -> bool:
        begun = self._begun
        return bool(begun) and time.monotonic() - begun > _LATE_S

    def _take_turn(self, turn: int) -> None:
        self._link.flush()  # what the one before had ready
        while (frame := self._next()) is not None:
            begun = time.monotonic()
            context = self._under_way[frame.number] = RequestContext(self._unsent)
            question = _Question(frame, begun, context)
            if not self._idle and self._park(question):
                continue
            if self._wary:
                self._link.flush()
                self._give_away()
                turn = 0
            else:
                self._begun = begun
            spent = time.thread_time()
            answer = self._answered(question)
            self._learn(time.thread_time() - spent)
            with self._changed:
                self._link.put(answer, context)
                kept = turn == self._turn
                if kept:  # nobody may take the turn from a thread that reads
                    self._begun = 0.0
            if not kept:
                self._link.flush()
                return
        self._end()
        if not self._finishing():
            self._abandon()

    def _answered(self, question: _Question) -> tuple[Buffer, ...]:
        frame, begun, context = question
        budget = min(frame.budget, limits.FRAME_BUDGET_MAX)
        deadline = begun + budget / 1000
        kind, pieces = self._answer(frame.type, memoryview(frame.payload), deadline, context)
        self._under_way.pop(frame.number, None)
        try:
            return numbered.answer(frame.number, kind, pieces)
        except FrameError:
            context.release()
            raise

    def _learn(self, spent_s: float) -> None:
        if spent_s > _QUICK_S:
            self._wary = _WARY
        elif self._wary:
            self._wary -= 1

    def _give_away(self) -> None:
        with self._changed:
            self._held = False
            self._begun = 0.0
            self._turn += 1
            self._changed.notify()

    def _end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    # Standing by

    def _park(self, question: _Question) -> bool:
        """Have a question wait, as nobody could read while it is answered; False if one can."""
        with self._changed:
            if self._idle or self._hire():
                return False
            if len(self._parked) < limits.NUMBERED_WAITING:
                self._parked.append(question)
                return True
        self._refuse(question.frame.number, Code.OVERLOADED, "too many questions under way")
        return True

    def _hire(self) -> bool:
        """Start a thread to stand by; False if there may be none, or none is to be had."""
        placed = self._others > 0  # the first needs no place: each connection has a reader
        if placed and not self._crew.join():
            return False
        self._idle += 1
        self._others += 1
        try:
            threading.Thread(
                target=self._stand_by, args=(placed,), name="answers", daemon=True
            ).start()
        except RuntimeError:
            self._idle -= 1
            self._left(placed=placed)
            return False
        return True

    def _stand_by(self, placed: bool) -> None:  # noqa: FBT001 - an argument of a thread
        try:
            with contextlib.suppress(FrameError, OSError):
                self._work(hired=True, placed=placed)
        finally:
            self._left(placed=placed)

    def _left(self, *, placed: bool) -> None:
        if placed:
            self._crew.leave()
        with self._changed:
            self._others -= 1
            self._changed.notify_all()

    # Questions given up

    def _next(self) -> Numbered | None:
        """Return the next question; those that are given up meanwhile are ended."""
        frame, self._first = self._first, None
        while True:
            frame = frame or self._link.take()
            if frame is None:
                self._begun = 0.0
                frame = self._link.receive()
            if frame is None or frame.type != FrameType.CANCEL:
                return frame
            self._cancel(frame)
            frame = None

    def _cancel(self, frame: Numbered) -> None:
        if frame.payload:
            raise FrameError(Code.MALFORMED, "a cancel frame is empty")
        context = self._under_way.get(frame.number)
        if context is None:
            return  # its answer is on its way
        context.cancel()
        with self._changed:
            waiting = [question for question in self._parked if question.context is context]
            for question in waiting:
                self._parked.remove(question)
        for question in waiting:
            self._refuse(question.frame.number, Code.DEADLINE_EXCEEDED, "it was given up")

    def _refuse(self, number: int, code: Code, detail: str) -> None:
        self._under_way.pop(number, None)
        self._link.put(numbered.answer(number, ERROR, (encode_error(code, detail),)))

    def _abandon(self) -> None:
        """End all that is under way: the host has ended the connection, and waits for nothing."""
        self._link.drop()
        with self._changed:
            self._parked.clear()
            for context in list(self._under_way.values()):
                context.cancel()
