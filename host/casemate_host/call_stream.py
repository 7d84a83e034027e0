"""One stream of `Infer` calls: what was asked, what was answered, and when it is to end.

Promise: each question that was read is answered once, while the stream lasts; what is kept for a
client that takes no answers is bounded, because then nothing more is read.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import CasemateError, Code, FrameError
from casemate_host import call_messages
from casemate_host.admission import ShedError
from casemate_host.posting import Listener
from casemate_host.ready import ReadyAnswers
from casemate_host.stream_question import Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from casemate_host.call import Call
    from casemate_host.call_messages import Entry
    from casemate_host.callers import Caller
    from casemate_host.infer_admission import InferAdmission
    from casemate_host.posting import Posted, PostingConnection
    from casemate_host.relay import Relay
    from casemate_host.tracing import Metadata

_LOOK_S: Final = 1.0
_LINGER_S: Final = 0.05  # after the last answer: the next question will then wake nobody


class CallStream:
    """One client's stream; ``take`` and ``answers`` have a thread each."""

    def __init__(
        self,
        relay: Relay,
        admission: InferAdmission,
        caller: Caller,
        call: Call,
        metadata: Metadata,
        *,
        deaf: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        """``metadata``: the stream's, where a parent of its questions' spans may be named.

        ``deaf``: entered while nothing is read, for who hears of the client's end by reading.
        """
        self._deaf = deaf
        self._metadata = metadata
        self._relay = relay
        self._admission = admission
        self._caller = caller
        self._call = call
        self.listener = Listener()
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._full = False
        self._under_way: dict[int, Question] = {}
        self._unsent: list[Question] = []
        self._ready = ReadyAnswers(caller.unread)
        self._begun = self._used = time.monotonic()
        self._retired_at: float | None = None
        self._retiring = False
        self._news = False
        self._next_look = 0.0
        self._connection: PostingConnection | None = None
        self._complete = False
        self._fault: CasemateError | None = None
        self._over = False

    # Questions: the thread that takes the client's messages

    def take(self, messages: Iterator[bytes]) -> None:
        """Pass on what the client asks until it ends its side, or breaks a rule."""
        fault: CasemateError | None = None
        try:
            for message in messages:
                self._take(message)
                self._await_room()
        except CasemateError as error:
            fault = error
        except Exception:  # noqa: BLE001 - gRPC raises a bare one when the call is over
            fault = CasemateError(Code.UNAVAILABLE, "the client went away")
        self._complete, self._fault = True, fault
        self._tell()

    def _take(self, message: bytes) -> None:
        questions: list[Question] = []
        now = time.monotonic()
        for entry in call_messages.read_requests(message):
            if request := entry.request:
                questions.append(Question(entry, request, self, now))
            else:
                self._ask(questions)
                questions = []
                self._given_up(entry.number)
        self._ask(questions)
        if self._ready or not self.listener.listening:
            self.listener.rouse()

    def _ask(self, questions: Sequence[Question]) -> None:
        """Note questions and pass them on, all but those that are refused."""
        if questions and not self._are_let_in(questions):
            questions = [question for question in questions if self._is_let_in(question)]
        self._post(questions)

    def _are_let_in(self, questions: Sequence[Question]) -> bool:
        """Note all at once; False if there is something to be said of one of them."""
        numbered = {question.asked: question for question in questions}
        sizes = [question.length for question in questions]
        if (
            len(numbered) < len(questions)
            or 0 in numbered
            or not self._under_way.keys().isdisjoint(numbered)
            or len(numbered) + len(self._under_way) > limits.CALL_STREAM_UNDER_WAY
            or not self._admission.enter_all(self._caller, sizes, limits.CALL_STREAM_REQUEST_MAX)
        ):
            return False
        with self._lock:
            if not self._over:
                self._under_way.update(numbered)
                self._used = questions[0].begun
                return True
        self._admission.leave(self._caller, len(questions))
        return False

    def _is_let_in(self, question: Question) -> bool:
        """Note a question, unless it is refused."""
        try:
            if not question.asked or question.asked in self._under_way:
                raise _malformed("a request without a number, or with that of one under way")
            if len(self._under_way) >= limits.CALL_STREAM_UNDER_WAY:
                raise ShedError("too many requests on one stream", limits.RETRY_S)
            question.trace = self._admission.enter(
                self._caller, question.length, limits.CALL_STREAM_REQUEST_MAX, self._metadata
            )
            if self._caller.quota is not None:
                self._caller.quota.spend(question.length)
        except CasemateError as error:
            if error.code is Code.MALFORMED:
                raise
            self._refuse(question, error)
            return False
        with self._lock:
            if not self._over:
                self._under_way[question.asked] = question
                self._used = question.begun
                return True
        self._admission.leave(self._caller)
        return False

    def _post(self, posts: Sequence[Question]) -> None:
        if not posts:
            return
        try:
            self._relay.post(posts, self._call)
        except FrameError as error:
            for question in posts:
                question.lost = error
            self.settled(posts)

    def _given_up(self, number: int) -> None:
        """The client no longer waits: its answer is an error, and the enclave hears of it."""
        question = self._under_way.get(number)
        if question is not None:
            self._drop(question, FrameError(Code.DEADLINE_EXCEEDED, "the caller went away"))

    def _await_room(self) -> None:
        """Read no further while the client takes no answers."""
        if self._over or self._has_room():
            return
        with self._deaf(), self._room:
            self._full = True  # before the look that decides: whoever makes room sees it
            self._room.wait_for(lambda: self._over or self._has_room())
            self._full = False

    def _has_room(self) -> bool:
        kept = len(self._under_way) + len(self._ready)
        return (
            kept < limits.CALL_STREAM_UNDER_WAY and self._ready.size < limits.CALL_STREAM_READY_MAX
        )

    # Ends of questions, in whichever thread hears of them

    def settled(self, posts: Sequence[Posted]) -> None:
        """Take what became of questions; waits for nothing."""
        ended = [
            question
            for question in self._left(posts)
            if not question.unsent or not self._is_again(question)
        ]
        self._admission.leave(self._caller, len(ended))
        answered: list[Question] = []
        entries: list[Entry] = []
        for question in ended:
            outcome = question.outcome()
            if isinstance(outcome, CasemateError):
                self._refuse(question, outcome)
                if outcome is question.lost:
                    self._relay.lost()
            else:
                question.trace.end(Code.OK)
                answered.append(question)
                entries.append(call_messages.answered(question.asked, outcome))
        if answered:
            now = time.monotonic()
            sizes = [question.length for question in answered]
            took_s = [now - question.begun for question in answered]
            self._admission.answered(self._caller, sizes, took_s)
            self._ready.add(entries)

    def _left(self, posts: Sequence[Posted]) -> list[Question]:
        """Return the questions that were under way until now."""
        left: list[Question] = []
        with self._lock:
            for post in posts:
                if isinstance(post, Question) and self._under_way.get(post.asked) is post:
                    del self._under_way[post.asked]
                    left.append(post)
        return left

    def _is_again(self, question: Question) -> bool:
        """Whether what never reached the enclave is asked once more."""
        if question.again:
            return False
        with self._lock:
            question.again = True
            self._under_way[question.asked] = question
            self._unsent.append(question)
        return True

    def _drop(self, question: Question, error: CasemateError) -> None:
        """End a question that has no answer yet."""
        if not self._left((question,)):
            return
        if question.connection is not None:
            question.connection.give_up(question)
        self._admission.leave(self._caller)
        self._refuse(question, error)

    def _refuse(self, question: Question, error: CasemateError) -> None:
        """Answer with ``error``."""
        question.trace.end(error.code)
        self._admission.refused(self._caller, error.code)
        self._ready.add((call_messages.refused(question.asked, error),))

    # Answers: the thread that gives them to the client

    def answers(self) -> Iterator[bytes]:
        """Yield messages until both sides are done; raises CasemateError."""
        yield b""  # questions may come
        while True:
            news, self._news = self._news, False
            if self._ready:
                yield from self._messages()
            self._call.remaining_s()
            if self._fault is not None:
                raise self._fault
            if self._complete and not self._under_way and not self._ready:
                return
            if self._unsent:
                self._ask_again()
            now = time.monotonic()
            if news or now >= self._next_look:
                self._next_look = now + _LOOK_S
                self._expire(now)
                if self._should_retire(now):
                    self._retired_at = now
                    yield call_messages.LAST
            self._listen(now)

    def _messages(self) -> Iterator[bytes]:
        """Yield what is ready, as much in a message as fits."""
        while entries := self._ready.take():
            if self._full:
                with self._room:
                    self._room.notify()
            try:
                yield call_messages.write_responses(entries)
            finally:
                self._ready.taken(entries)

    def _ask_again(self) -> None:
        """Ask what never reached the enclave once more, on another connection."""
        with self._lock:
            posts, self._unsent = self._unsent, []
        self._post(posts)

    def _expire(self, now: float) -> None:
        """End what the enclave should have ended by itself."""
        with self._lock:
            late = [question for question in self._under_way.values() if question.until <= now]
        for question in late:
            detail = "no answer before the deadline"
            self._drop(question, FrameError(Code.DEADLINE_EXCEEDED, detail))

    def _should_retire(self, now: float) -> bool:
        if self._retired_at is not None:
            if not self._under_way and now - self._retired_at > limits.CALL_STREAM_CLOSE_S:
                raise CasemateError(Code.UNAVAILABLE, "the stream was to end, and was not ended")
            return False
        old = now - self._begun > limits.CALL_STREAM_AGE_S
        idle = not self._under_way and now - self._used > limits.CALL_STREAM_IDLE_S
        return self._retiring or old or idle

    def _listen(self, now: float) -> None:
        """Wait for news: at the enclave's connection, or for a question to be asked."""
        with self._lock:
            question = next(iter(self._under_way.values()), None)
        if question is not None:
            self._connection = question.connection
        elif self._connection is not None and self._connection.over:
            self._connection = None
        lingering = now - self._used < _LINGER_S
        if self._connection is not None and (question is not None or lingering):
            until = now + (_LOOK_S if question is not None else _LINGER_S)
            self._connection.listen(self.listener, self._heard, until)
            self._used = max(self._used, now) if question is not None else self._used
        elif not self._heard():
            self._connection = None
            self.listener.sleep(self._quiet_s(now))

    def _heard(self) -> bool:
        return bool(self._ready) or self._news or bool(self._unsent)

    def _quiet_s(self, now: float) -> float:
        """How long nothing is to be done unless something happens."""
        if self._retired_at is not None or self._under_way:
            return _LOOK_S
        idle = self._used + limits.CALL_STREAM_IDLE_S
        return max(_LOOK_S, min(idle, self._begun + limits.CALL_STREAM_AGE_S) - now)

    # Ends of the stream

    @property
    def busy(self) -> bool:
        """Whether a question is under way, or answered and not taken."""
        return bool(self._under_way) or bool(self._ready)

    def retire(self) -> None:
        """Ask the client to end its side."""
        self._retiring = True
        self._tell()

    def shutdown(self, _how: int) -> None:
        """Notice that the client went away; see ``Call.attach``."""
        self._tell()

    def end(self) -> None:
        """Give up what is under way; nothing can be answered any more."""
        with self._room:
            self._over = True
            left = list(self._under_way.values())
            self._room.notify()
        for question in left:
            self._drop(question, FrameError(Code.DEADLINE_EXCEEDED, "the caller went away"))
        self._ready.drop()

    def _tell(self) -> None:
        self._news = True
        self.listener.rouse()


def _malformed(detail: str) -> CasemateError:
    return CasemateError(Code.MALFORMED, detail)
