"""A connection with many exchanges under way: its threads take turns at reading (SPEC 9.2.1).

Whoever has the turn takes what has arrived, answers one question after another, and sends the
answers together before it waits for more. Small requests are spared what costs them most: waking a
thread, and passing the interpreter's lock. No question waits long for another one's answer: a
thread gives the turn away before it answers where answers have just been slow, and a second one
stands by to take it from a thread that is not back in time.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from casemate import frames, limits, numbered
from casemate.errors import FrameError
from casemate.frames import FrameType

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.numbered import Numbered
    from casemate.wire import Buffer

    # Takes inner type, payload and deadline; returns inner type and payload. Never raises.
    Answer = Callable[[int, memoryview, float], tuple[int, tuple[Buffer, ...]]]

# An answer as quick as this may keep others waiting. By the processor's time: on a busy machine
# the clock says little about an answer.
_QUICK_S: Final = 0.001
_WARY: Final = 32  # quick answers in a row that it takes to trust in the next one
_LATE_S: Final = 0.005  # then the turn is taken away
_IDLE_LOOK_S: Final = 0.05
_READ: Final = 64 * limits.KIB
_JOINED: Final = 16 * limits.KIB  # pieces below it are cheaper to join than to gather


class Crew:
    """How many threads all connections together may have beside their own; thread-safe."""

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


class TurnConnection:
    """Answers the numbered questions of one connection, until it ends."""

    def __init__(self, channel: socket.socket, answer: Answer, crew: Crew) -> None:
        """``channel`` becomes blocking, and is not closed."""
        channel.settimeout(None)
        self._channel = channel
        self._answer = answer
        self._crew = crew
        self._frames = numbered.FrameBuffer(FrameType.NUMBERED, numbered.QUESTION_MAX)
        self._changed = threading.Condition()
        self._held = False
        self._turn = 0
        self._begun = 0.0  # when the holder of the turn began an answer; 0 while it reads
        self._wary = 0
        self._idle = 0
        self._others = 0
        self._over = False
        self._sending = threading.Lock()
        self._first: Numbered | None = None
        self._ready: deque[tuple[Buffer, ...]] = deque()

    def serve(self, first: Numbered) -> None:
        """Answer everything until the host ends the connection, ``first`` being its first question.

        Raises FrameError for what is no numbered frame, OSError if the host takes no answers.
        """
        self._first = first
        try:
            self._work()
        finally:
            with self._changed:
                self._changed.wait_for(lambda: not self._others)

    def _work(self) -> None:
        try:
            while turn := self._await_turn():
                self._take_turn(turn)
        finally:
            self._end()

    # Turns

    def _await_turn(self) -> int:
        """Return the number of this thread's turn, or 0 when the connection is over."""
        with self._changed:
            self._idle += 1
            while self._held and not self._over and not self._is_late():
                self._changed.wait(_LATE_S if self._begun else _IDLE_LOOK_S)
            self._idle -= 1
            if self._over:
                return 0
            self._held = True
            self._begun = 0.0
            self._turn += 1
            turn = self._turn
            alone = not self._idle and self._crew.join()
            self._others += alone
        if alone:
            self._start()
        return turn

    def _is_late(self) -> bool:
        begun = self._begun
        return bool(begun) and time.monotonic() - begun > _LATE_S

    def _take_turn(self, turn: int) -> None:
        self._flush()  # what the one before had ready
        while (frame := self._next()) is not None:
            begun = time.monotonic()
            if self._wary:
                self._flush()
                self._give_away()
                turn = 0
            else:
                self._begun = begun
            spent = time.thread_time()
            answer = self._answered(frame, begun)
            self._learn(time.thread_time() - spent)
            with self._changed:
                self._ready.append(answer)
                kept = turn == self._turn
                if kept:  # nobody may take the turn from a thread that reads
                    self._begun = 0.0
            if not kept:
                self._flush()
                return
        self._end()

    def _answered(self, frame: Numbered, now: float) -> tuple[Buffer, ...]:
        budget = min(frame.budget, limits.FRAME_BUDGET_MAX)
        kind, pieces = self._answer(frame.type, memoryview(frame.payload), now + budget / 1000)
        return numbered.answer(frame.number, kind, pieces)

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

    def _start(self) -> None:
        def stand_by() -> None:
            try:
                with contextlib.suppress(FrameError, OSError):
                    self._work()
            finally:
                self._left()

        try:
            threading.Thread(target=stand_by, name="answers", daemon=True).start()
        except RuntimeError:  # no thread to be had
            self._left()

    def _left(self) -> None:
        self._crew.leave()
        with self._changed:
            self._others -= 1
            self._changed.notify_all()

    # Bytes

    def _next(self) -> Numbered | None:
        """Return the next question; what is ready is sent before it is waited for."""
        if (first := self._first) is not None:
            self._first = None
            return first
        while (frame := self._frames.take()) is None:
            self._begun = 0.0
            self._flush()
            if self._frames.begun:
                self._wait(select.POLLIN)
            data = self._channel.recv(_READ)
            if not data:
                return None
            self._frames.add(data)
        return frame

    def _flush(self) -> None:
        if not self._ready:
            return
        with self._sending:
            try:
                while self._ready:
                    self._send(self._gather())
            except OSError:  # a frame was cut: nothing may follow it, nobody need wait again
                self._ready.clear()
                with contextlib.suppress(OSError):
                    self._channel.shutdown(socket.SHUT_RDWR)
                raise

    def _gather(self) -> list[Buffer]:
        """Take what is ready, as much as goes into one call."""
        small: list[Buffer] = []
        size = 0
        while self._ready and size < _JOINED:
            pieces = self._ready.popleft()
            size += sum(map(len, pieces))
            small += pieces
        return [b"".join(small)] if size < 2 * _JOINED else small

    def _send(self, buffers: list[Buffer]) -> None:
        while buffers:
            try:
                sent = self._channel.sendmsg(buffers, (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLOUT)
                continue
            buffers = frames.unsent(buffers, sent)

    def _wait(self, event: int) -> None:
        """Wait until the host sends or takes more; raises TimeoutError if it does not."""
        poll = select.poll()
        poll.register(self._channel, event)
        if not poll.poll(limits.FRAME_HEAD_TIMEOUT_S * 1000):
            raise TimeoutError
