"""A connection with many exchanges under way: what has arrived is answered together (SPEC 9.2.1).

One thread reads. It opens all questions that have come, has their runs begun together, seals what
comes back and sends the answers by one call, before it waits for more. So small requests are spared
what costs them most: waking threads and processes, and passing the interpreter's lock. What may
take long, or turns out to, it leaves to other threads, one of which always stands by: so somebody
always reads, be it only that a question has been given up. Without one, questions wait unopened.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from casemate import limits, numbered
from casemate.errors import Code, FrameError, RequestError
from casemate.frames import ERROR, FrameType, encode_error
from casemate_enclave.context import RequestContext, Unsent
from casemate_enclave.left_to_models import LeftToModels
from casemate_enclave.numbered_link import NumberedLink
from casemate_enclave.runs import Left, finish

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from casemate.numbered import Numbered
    from casemate.wire import Buffer
    from casemate_enclave.crew import Crew
    from casemate_enclave.runs import Outcome, Run, SharedModel, Steps, Together

    # Takes inner type, payload, deadline and the question's context; its steps return inner type
    # and payload. They never raise.
    Answer = Callable[
        [int, memoryview, float, RequestContext], Steps[tuple[int, tuple[Buffer, ...]]]
    ]


_SPARE: Final = 2  # that stand by: one is enough


class _Question:
    """A question under way: its steps, and the run that they wait for."""

    __slots__ = ("context", "need", "number", "repeated", "steps")

    def __init__(
        self, number: int, context: RequestContext, steps: Steps[tuple[int, tuple[Buffer, ...]]]
    ) -> None:
        self.number = number
        self.context = context
        self.steps = steps
        self.need: Run | None = None
        self.repeated = False


class _UnderWay:
    """Runs under way, and the questions that wait for them by their places."""

    __slots__ = ("questions", "together")

    def __init__(self, together: Together, questions: list[_Question]) -> None:
        self.together = together
        self.questions = questions

    def use_the_time(self) -> None:
        """Do what can be done while they run."""
        for place in self.together.members:
            need = self.questions[place].need
            if need is not None and need.meanwhile is not None:
                need.meanwhile()


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
        self._lock = threading.Lock()
        self._posted = threading.Condition(self._lock)
        self._left = threading.Condition(self._lock)
        self._tasks: deque[_Question | _UnderWay] = deque()
        self._idle = 0  # threads that stand by, or are about to
        self._spare_since = 0.0  # since when more than one of them does
        self._others = 0
        self._with_models = LeftToModels(self._resume, self._link.flush, self._give_up)
        self._over = False
        self._contexts: dict[int, RequestContext] = {}

    def serve(self, first: Numbered) -> None:
        """Answer everything until the host ends the connection, ``first`` being its first frame.

        Raises FrameError for what is no numbered frame, OSError if the host takes no answers.
        """
        frames = [first]
        try:
            while frames and not self._over:
                self._answer_together(self._taken_on(frames))
                self._link.flush()
                frames = self._arrived()
            if not self._finishing():
                self._abandon()
        except BaseException:
            self._abandon()
            raise
        finally:
            self._end()

    def _arrived(self) -> list[Numbered]:
        """Wait for frames; return as many as are answered together, none at the end."""
        frame = self._link.receive()
        frames: list[Numbered] = []
        while frame is not None:
            frames.append(frame)
            frame = self._link.take() if len(frames) < limits.TOGETHER_MAX else None
        return frames

    def _taken_on(self, frames: Iterable[Numbered]) -> list[_Question]:
        """Return the questions to answer now; those that are given up are ended."""
        now = time.monotonic()
        questions = []
        reads_on = False  # somebody, while these are answered
        for frame in frames:
            if frame.type == FrameType.CANCEL:
                self._cancel(frame)
                continue
            budget = min(frame.budget, limits.FRAME_BUDGET_MAX)
            context = self._contexts[frame.number] = RequestContext(self._unsent)
            payload = memoryview(frame.payload)
            steps = self._answer(frame.type, payload, now + budget / 1000, context)
            question = _Question(frame.number, context, steps)
            reads_on = reads_on or not self._is_waited_with(question)
            if reads_on:
                questions.append(question)
        return questions

    # Answering

    def _answer_together(self, questions: Iterable[_Question]) -> None:
        waiting: dict[SharedModel, list[_Question]] = {}
        for question in questions:
            need = self._advance(question, question.steps.send)
            if need is not None:
                waiting.setdefault(need.model, []).append(question)
        begun = [u for model, asking in waiting.items() for u in self._begin(model, asking)]
        until = time.monotonic() + limits.LATE_S
        for under_way in begun:
            under_way.use_the_time()
        for under_way in begun:
            self._await(under_way, until)

    def _advance(
        self,
        question: _Question,
        step: Callable[[Any], Run | None],
        outcome: Outcome | None = None,
        *,
        may_wait: bool = True,
    ) -> Run | None:
        """Take an answer one step further; return the run that it then waits for, if any.

        Whatever else it may wait for is another thread's; so are runs unless they ``may_wait``.
        """
        try:
            need = question.need = step(outcome)
        except StopIteration as end:
            self._put(question, *end.value)
            return None
        if need is None or not may_wait:
            self._post(question)
        return need

    def _put(self, question: _Question, kind: int, pieces: tuple[Buffer, ...]) -> None:
        self._contexts.pop(question.number, None)
        try:
            frame = numbered.answer(question.number, kind, pieces)
        except FrameError:
            question.context.release()
            raise
        self._link.put(frame, question.context)

    def _begin(self, model: SharedModel, questions: list[_Question]) -> list[_UnderWay]:
        """Have runs of one model begun; those that cannot go together are other threads'."""
        begun = []
        while questions:
            if not (together := model.begin([q.need for q in questions if q.need])):
                break
            begun.append(_UnderWay(together, questions))
            if len(together.members) == len(questions):
                return begun
            members = set(together.members)
            questions = [q for place, q in enumerate(questions) if place not in members]
        for question in self._with_models.offer(model, questions):
            self._post(question)
        return begun

    def _await(self, under_way: _UnderWay, until: float) -> None:
        """Answer what comes back in time; another thread waits for the rest."""
        together = under_way.together
        while not together.done:
            if not self._receive(under_way, max(0.0, until - time.monotonic())):
                together.hurry()
                self._post(under_way)
                return

    def _receive(self, under_way: _UnderWay, patience_s: float) -> bool:
        back = under_way.together.receive(patience_s)
        for place, outcome in back:
            self._resume(under_way.questions[place], outcome)
        return bool(back)

    def _resume(self, question: _Question, outcome: Outcome) -> None:
        steps = question.steps
        if isinstance(outcome, Left):
            question.repeated = outcome is Left.LOST
            self._post(question)
        elif isinstance(outcome, RequestError):
            self._advance(question, steps.throw, outcome, may_wait=False)
        else:
            self._advance(question, steps.send, outcome, may_wait=False)

    # Other threads

    def _is_waited_with(self, question: _Question) -> bool:
        """Have a question wait if nobody stands by; False if somebody does."""
        with self._lock:
            if self._idle > len(self._tasks) or self._hire():
                return False
            if len(self._tasks) < limits.NUMBERED_WAITING:
                self._tasks.append(question)
                return True
        self._refuse(question.number, Code.OVERLOADED, "too many questions under way")
        return True

    def _post(self, task: _Question | _UnderWay) -> None:
        """Leave something to the other threads: to one more if none stands by."""
        with self._posted:
            if self._idle <= len(self._tasks):
                self._hire()
            if isinstance(task, _UnderWay):
                self._tasks.appendleft(task)
            else:
                self._tasks.append(task)
            self._posted.notify()

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
            self._leave(placed=placed)
            return False
        return True

    def _stand_by(self, placed: bool) -> None:  # noqa: FBT001 - an argument of a thread
        try:
            with contextlib.suppress(FrameError, OSError):
                self._work(hired=True, placed=placed)
        finally:
            with self._posted:
                self._leave(placed=placed)

    def _leave(self, *, placed: bool) -> None:
        if placed:
            self._crew.leave()
        self._others -= 1
        self._left.notify_all()

    def _work(self, *, hired: bool = False, placed: bool = False) -> None:
        """Do what is left to others until the connection is over.

        ``hired``: this thread was counted as idle before.
        """
        expected = hired
        try:
            while (task := self._next_task(expected=expected, placed=placed)) is not None:
                expected = False
                if isinstance(task, _Question):
                    self._put(task, *finish(task.steps, task.need, repeated=task.repeated))
                    self._link.flush()
                else:
                    self._carry_on(task)
        except BaseException:
            self._give_up()
            raise

    def _next_task(self, *, expected: bool, placed: bool) -> _Question | _UnderWay | None:
        """Return what is to be done next; None when the connection is over.

        Or when more threads stand by than are needed: then one ends of those that are ``placed``.
        """
        with self._posted:
            if not expected:
                self._idle += 1
                if self._idle == _SPARE:
                    self._spare_since = time.monotonic()
            while not (self._tasks or self._over or (placed and self._has_spare())):
                self._posted.wait(limits.THREAD_IDLE_S if placed else None)
            self._idle -= 1
            return self._tasks.popleft() if self._tasks else None

    def _has_spare(self) -> bool:
        """Whether one more than is needed has stood by for long; the next one is as long in coming.

        The caller holds the lock.
        """
        now = time.monotonic()
        if self._idle < _SPARE or now - self._spare_since < limits.THREAD_IDLE_S:
            return False
        self._spare_since = now
        return True

    def _carry_on(self, under_way: _UnderWay) -> None:
        """Answer what takes long, as it comes."""
        together, patience_s = under_way.together, limits.LATE_S
        while not together.done:
            if self._receive(under_way, patience_s):
                self._link.flush()
            elif not together.done:  # what comes back may have been given up
                patience_s = together.hurry()

    # Ends

    def _cancel(self, frame: Numbered) -> None:
        if frame.payload:
            raise FrameError(Code.MALFORMED, "a cancel frame is empty")
        context = self._contexts.get(frame.number)
        if context is None:
            return  # its answer is on its way
        context.cancel()
        with self._posted:
            waiting = [task for task in self._tasks if _is_of(task, context)]
            for task in waiting:
                self._tasks.remove(task)
        if waiting:
            self._refuse(frame.number, Code.DEADLINE_EXCEEDED, "it was given up")

    def _refuse(self, number: int, code: Code, detail: str) -> None:
        self._contexts.pop(number, None)
        self._link.put(numbered.answer(number, ERROR, (encode_error(code, detail),)))

    def _give_up(self) -> None:
        self._abandon()
        self._link.hang_up()

    def _abandon(self) -> None:
        """End all that is under way: the host has ended the connection, and waits for nothing."""
        self._link.drop()
        with self._posted:
            waiting = [task for task in self._tasks if isinstance(task, _Question)]
            for task in waiting:
                self._tasks.remove(task)
            for context in list(self._contexts.values()):
                context.cancel()

    def _end(self) -> None:
        """Have all that is under way ended or answered."""
        with self._posted:
            self._over = True
            self._posted.notify_all()
        self._with_models.wait()
        with contextlib.suppress(FrameError, OSError):
            self._work()
        with self._left:
            self._left.wait_for(lambda: not self._others)


def _is_of(task: _Question | _UnderWay, context: RequestContext) -> bool:
    return isinstance(task, _Question) and task.context is context
