"""What lies between the threads of one stream, bounded on every side (SPEC 5.9)."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from casemate_enclave.stream_answers import Answered, StreamQuestion
    from casemate_enclave.stream_groups import Back

_FULL_MESSAGE: Final = 32  # answers for which nobody lingers any more
_SHORT: Final = 2 * limits.WORKER_INLINE_MAX  # tensors that came with others', encoded


class ClosedError(Exception):
    """The stream is over: what is still at work on it stops."""


class Desk:
    """Questions that wait for a worker, answers that wait to be sent; thread-safe."""

    def __init__(self) -> None:
        lock = threading.Lock()
        self._asked = threading.Condition(lock)
        self._answered = threading.Condition(lock)
        self._sent = threading.Condition(lock)
        self._questions: deque[StreamQuestion] = deque()
        self._left: deque[Generator[Back]] = deque()
        self._ready: deque[Answered] = deque()
        self._ready_bytes = 0
        self._under_way = 0
        self._idle = 0
        self._closed = False
        self._finished = False

    # The reader

    def await_room(self, check: Callable[[], None], below: int = limits.STREAM_UNITS_MAX) -> None:
        """Wait until fewer than ``below`` messages are under way.

        ``check`` is called while it waits, and raises to end that.
        """
        with self._sent:
            while self._under_way >= below:
                check()
                self._sent.wait(limits.STREAM_LOOK_S)

    @property
    def room(self) -> int:
        """How many messages may be handed on at once."""
        return limits.STREAM_UNITS_MAX - self._under_way

    def ask(self, *questions: StreamQuestion, at_once: int = 1) -> int:
        """Hand questions to the workers, each of whom takes so many ``at_once``.

        Return how many workers are lacking.
        """
        with self._asked:
            self._questions.extend(questions)
            self._under_way += sum([question.count for question in questions])
            wanted = -(-len(self._questions) // at_once)
            self._asked.notify(wanted)
            return max(0, wanted - self._idle)

    def begin(self, count: int) -> None:
        """Note that the reader answers so many messages itself."""
        with self._sent:
            self._under_way += count

    def has_hand(self, spare: int) -> bool:
        """Whether a worker is free for what is left to it; ``spare`` more may be hired."""
        with self._asked:
            return self._idle + spare > len(self._questions) + len(self._left)

    def leave(self, answers: Generator[Back]) -> int:
        """Have a worker carry on with answers that were begun; return how many are lacking."""
        with self._asked:
            self._left.append(answers)
            self._asked.notify()
            return 0 if self._idle else 1

    def done(self, answers: list[Answered]) -> None:
        """Note that the reader has sent answers itself."""
        with self._sent:
            self._done(answers)

    def end_what_is_left(self) -> None:
        """End what no worker carried on with, once there is none."""
        while self._left:
            self._left.popleft().close()

    def finish(self) -> None:
        """Let the writer end when it has sent what is ready."""
        with self._answered:
            self._finished = True
            self._answered.notify_all()

    def close(self) -> None:
        """End the stream for all: what waits is dropped."""
        with self._asked:
            self._closed = self._finished = True
            self._questions.clear()
            self._ready.clear()
            for condition in (self._asked, self._answered, self._sent):
                condition.notify_all()

    # The workers

    def next_task(
        self, most: Callable[[], int] = lambda: 1
    ) -> list[StreamQuestion] | Generator[Back]:
        """Return answers that are left, or the next questions, ``most`` of them.

        Raises ClosedError if there will be none.
        """
        with self._asked:
            self._idle += 1
            self._asked.wait_for(lambda: self._left or self._questions or self._finished)
            self._idle -= 1
            if self._left:  # although the stream may be over: their runs are under way
                return self._left.popleft()
            if self._closed or not self._questions:
                raise ClosedError
            count = min(len(self._questions), most())
            return [self._questions.popleft() for _ in range(count)]

    def answer(self, *answered: Answered, placed: bool = False) -> None:
        """Hand answers to the writer; waits while too many are ready. Raises ClosedError.

        If others that began with them may hold a place of the model still (``placed``) only long
        ones wait, which do not: a client that takes no answers must not keep a place. There is one
        such answer for each question under way.
        """
        with self._sent:
            if not placed or any(one.size > _SHORT for one in answered):
                self._sent.wait_for(self._has_room)
            if self._closed:
                raise ClosedError
            self._ready.extend(answered)
            self._ready_bytes += sum(one.size for one in answered)
            self._answered.notify()

    def _has_room(self) -> bool:
        full = (
            self._ready_bytes >= limits.STREAM_READY_MAX
            or len(self._ready) >= limits.STREAM_UNITS_MAX
        )
        return self._closed or not full

    # The writer

    def next_answers(self) -> list[Answered]:
        """Return all answers that are ready, at least one; none when all have been sent.

        While more questions wait it lingers a moment, so that answers share a message.
        """
        with self._answered:
            self._answered.wait_for(lambda: self._ready or self._finished)
            busy = bool(self._questions) and len(self._ready) < _FULL_MESSAGE
        if busy:
            time.sleep(limits.STREAM_LINGER_S)
        with self._answered:
            answers = list(self._ready)
            self._ready.clear()
            return answers

    def sent(self, answers: list[Answered]) -> None:
        """Note that ``answers`` are on their way: there is room for others."""
        with self._sent:
            self._ready_bytes -= sum(answered.size for answered in answers)
            self._done(answers)

    def _done(self, answers: list[Answered]) -> None:
        self._under_way -= sum([one.count for one in answers if one.trailer.final])
        self._sent.notify_all()
