"""A stream of sealed questions, answered as they finish (SPEC 5.9, 9.3.2).

Three kinds of thread: the connection's own reads and opens, workers run the model, one seals and
sends. If runs are quick the first does all of it, for the questions of a message together: waking
threads would cost more. All that lies between them is bounded: a client that reads slowly holds its
own stream back, as far as its own sending, and nobody else's.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
import threading
import time
from typing import TYPE_CHECKING

from casemate import limits
from casemate.envelope.failure import open_failed
from casemate.envelope.sealed_chunks import encode_chunk, encode_header, parse_chunks
from casemate.errors import Code, RequestError
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.events import Event, Step
from casemate_enclave.shares import Owner
from casemate_enclave.stream_answers import StreamQuestion
from casemate_enclave.stream_desk import ClosedError, Desk
from casemate_enclave.stream_groups import answer_together
from casemate_enclave.stream_link import HungUpError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from casemate.envelope.messages import Trailer
    from casemate.envelope.stream_opening import OpenedStream, StreamAnswer
    from casemate.wire import Buffer
    from casemate_enclave.events import Journal
    from casemate_enclave.stream_answers import Answered, Answering
    from casemate_enclave.stream_groups import Back
    from casemate_enclave.stream_link import StreamLink
    from casemate_enclave.stream_memory import StreamMemory

_JOIN_S = 1.0  # for a last message that the host has no room for


class Stream:
    """One accepted stream, from its first question to its last answer."""

    def __init__(
        self, link: StreamLink, memory: StreamMemory, deadline: float, journal: Journal
    ) -> None:
        """``deadline`` in seconds of ``time.monotonic``."""
        self._link = link
        # Until it is known whose the stream is, its own.
        self._owner = Owner(secrets.token_bytes(16), listed=False)
        self._memory = memory
        self._deadline = deadline
        self._journal = journal
        self._desk = Desk()
        self._cancellation = Cancellation()
        self._workers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._held = 0  # bytes of all units that were read
        self._freed = 0  # of them, those given back
        self._taken = 0  # of them, those of the unit that is being read
        self._asked = 0
        self._answering: Answering | None = None
        self._read_ahead: list[StreamQuestion] = []  # of one message, for the workers
        self._end: Trailer | None = None
        self._broken = False

    def take(self, size: int) -> None:
        """Take memory for the unit that begins; for the stream's UnitReader.

        What was read and holds memory is handed on before this one waits for others to free theirs.
        """
        if not self._memory.try_take(self._owner, size):
            self._hand_on()
            self._memory.take(self._owner, size, self._check)
        self._held += size
        self._taken = size

    def belong(self, owner: Owner) -> None:
        """Give back what the preamble held; what follows is ``owner``'s."""
        self.release()
        self._owner = owner
        self._cancellation.owner = owner.key

    def refuse(self, answer: StreamAnswer, trailer: Trailer, floor: int) -> None:
        """Say, sealed, that no question of this stream is answered."""
        message = _Message(self._link, answer.header)
        message.add(answer.end(trailer, floor))
        message.send()

    def release(self) -> None:
        """Give back what the stream holds: after its preamble, and however it ended."""
        with self._lock:
            freed, self._freed = self._freed, self._held
        self._memory.free(self._owner, self._held - freed)

    def run(
        self,
        opened: OpenedStream,
        chunks: list[memoryview],
        answer: StreamAnswer,
        answering: Answering,
    ) -> None:
        """Answer all questions: those in ``chunks`` and those that follow on the connection.

        Raises EnvelopeError if the question does not open, HungUpError if the host went away.
        """
        self._answering = answering
        self._sealing = _Sealing(self._link, answer, answering, self._journal)
        writer = threading.Thread(target=self._write, name="answers", daemon=True)
        writer.start()
        try:
            self._end = self._read(opened, chunks, answering)
            if self._end.status is Code.DEADLINE_EXCEEDED:
                self._stop()
            self._desk.finish()
            writer.join()
        finally:
            self._stop()
            writer.join(_JOIN_S)
            if writer.is_alive():
                self._link.hang_up()
            for thread in (writer, *self._workers):
                thread.join()
            self._desk.end_what_is_left()
        self._check_broken()

    def _stop(self) -> None:
        self._cancellation.cancel()
        self._desk.close()

    # Reading

    def _read(
        self, opened: OpenedStream, chunks: list[memoryview], answering: Answering
    ) -> Trailer:
        """Read to the end; return how the stream ends, after what was asked is answered."""
        status, detail = Code.OK, ""
        try:
            try:
                self._questions(opened, chunks)
            except RequestError as refusal:
                status, detail = refusal.code, refusal.detail
                self._hand_on()
            self._desk.await_room(self._check, below=1)
        except TimeoutError:
            status, detail = Code.DEADLINE_EXCEEDED, "the deadline of the stream passed"
        return answering.trailer(status, detail, self._asked)

    def _questions(self, opened: OpenedStream, chunks: list[memoryview]) -> None:
        while True:
            for some in self._in_room(chunks):
                with self._journal.timed(Step.OPEN, len(some)):
                    for chunk in some:
                        self._read_one(opened.questions(chunk))
            self._hand_on()
            if opened.ended:
                return
            received = self._link.receive()
            if received is None:
                raise open_failed()
            _, chunks = parse_chunks(received, first=False)

    def _in_room(self, chunks: list[memoryview]) -> Iterator[list[memoryview]]:
        """Yield chunks as there is room for what they may ask; waits for it."""
        while chunks:
            room = self._desk.room - sum([question.count for question in self._read_ahead])
            if room > 0:
                yield chunks[:room]
                chunks = chunks[room:]
            else:
                self._hand_on()
                self._desk.await_room(self._check)

    def _read_one(self, messages: Sequence[memoryview]) -> None:
        if not messages:
            return
        most = self._answering.most if self._answering else 1
        if len(messages) > most:
            detail = f"{len(messages)} questions in one unit, the stream takes {most}"
            raise RequestError(Code.INVALID_REQUEST, detail)
        self._read_ahead.append(StreamQuestion(self._asked, messages, self._taken))
        self._asked += len(messages)

    def _hand_on(self) -> None:
        """Answer what a message of the host had, or hand it to the workers, at once."""
        read, self._read_ahead = self._read_ahead, []
        if self._answering is None:
            return
        while read:
            at_once = self._answering.together()
            # Only if somebody can carry on: workers may wait for the places that its runs hold.
            quick = self._answering.quick and self._desk.has_hand(self._unhired)
            questions = self._within_room(read[:at_once] if quick else read)
            del read[: len(questions)]
            if quick:
                self._answer_here(questions, self._answering)
            else:
                self._hire(self._desk.ask(*questions, at_once=at_once), self._answering)

    def _within_room(self, questions: list[StreamQuestion]) -> list[StreamQuestion]:
        """Return those for which there is room, in their order; waits until there is for one."""
        first, *others = questions
        if self._desk.room < first.count:
            self._desk.await_room(self._check, limits.STREAM_UNITS_MAX - first.count + 1)
        left = self._desk.room - first.count
        fit = [first]
        for question in others:
            left -= question.count
            if left < 0:
                break
            fit.append(question)
        return fit

    def _answer_here(self, questions: list[StreamQuestion], answering: Answering) -> None:
        """Answer what is quick; workers carry on with what turns out to take long."""
        self._desk.begin(sum([question.count for question in questions]))
        answers = answer_together(answering, questions, self._deadline, self._cancellation)
        held: Back = []
        until = 0.0
        try:
            for back in answers:
                if not held:
                    until = time.monotonic() + limits.STREAM_LINGER_S
                held += back
                if not back or time.monotonic() > until:
                    self._hand_over(held)
                    held = []
                if not back:
                    self._hire(self._desk.leave(answers), answering)
                    return
            self._give(held)
        except BaseException:
            answers.close()
            raise

    def _hand_over(self, back: Back) -> None:
        """Leave answers to the writer: the others' runs hold a place, and sending may take long."""
        if back:
            self._desk.answer(*(answered for _, answered in back), placed=True)
            self._free(back)

    def _give(self, back: Back) -> None:
        """Send answers, or leave that to the writer if it is at it."""
        answered = [one for _, one in back]
        if not answered:
            return
        if self._writing.acquire(blocking=False):
            try:
                self._send(answered)
            finally:
                self._writing.release()
            self._desk.done(answered)
        else:
            self._desk.answer(*answered)
        self._free(back)

    @property
    def _unhired(self) -> int:
        return limits.STREAM_WORKERS - len(self._workers)

    def _hire(self, lacking: int, answering: Answering) -> None:
        for _ in range(min(lacking, self._unhired)):
            worker = threading.Thread(
                target=self._work, args=(answering,), name="questions", daemon=True
            )
            worker.start()
            self._workers.append(worker)

    def _check(self) -> None:
        self._check_broken()
        self._link.check()
        if time.monotonic() >= self._deadline:
            raise TimeoutError

    def _check_broken(self) -> None:
        if self._broken:
            raise HungUpError

    # Running

    def _work(self, answering: Answering) -> None:
        try:
            while True:
                task = self._desk.next_task(answering.together)
                if isinstance(task, list):
                    self._answer(task, answering)
                else:
                    self._carry_on(task)
        except ClosedError:
            pass
        except Exception:  # noqa: BLE001 - a fault of this code must not end the enclave, nor be quoted
            self._break()

    def _answer(self, questions: list[StreamQuestion], answering: Answering) -> None:
        if len(questions) == 1:
            for answered in answering.answers(questions[0], self._deadline, self._cancellation):
                self._desk.answer(answered)
            self._free([(questions[0], answered)])
            return
        self._carry_on(answer_together(answering, questions, self._deadline, self._cancellation))

    def _carry_on(self, answers: Generator[Back]) -> None:
        with contextlib.closing(answers):
            for back in answers:
                self._hand_over(back)

    def _free(self, back: Back) -> None:
        taken = sum([question.taken for question, _ in back])
        self._memory.free(self._owner, taken)
        with self._lock:
            self._freed += taken

    # Writing

    def _write(self) -> None:
        try:
            while answers := self._desk.next_answers():
                with self._writing:
                    self._send(answers)
                self._desk.sent(answers)
            if self._end is not None:
                with self._writing:
                    self._send((), self._end)
        except HungUpError:
            pass
        except Exception:  # noqa: BLE001 - as above
            self._break()

    def _send(self, answers: Sequence[Answered], end: Trailer | None = None) -> None:
        try:
            self._sealing.send(answers, end)
        except (HungUpError, TimeoutError):
            self._broken = True
            self._link.hang_up()
            raise HungUpError from None

    def _break(self) -> None:
        self._journal.emit(Event.INTERNAL_ERROR)
        self._broken = True
        self._link.hang_up()


class _Message:
    """Chunks that leave together; what is full leaves at once."""

    def __init__(self, link: StreamLink, header: bytes) -> None:
        self._link = link
        self._pieces: list[Buffer] = [*encode_header(header)]
        self._size = 0

    def add(self, chunks: Iterable[Buffer]) -> None:
        for chunk in chunks:
            self._pieces += encode_chunk(chunk)
            self._size += len(chunk)
            if self._size >= limits.STREAM_MESSAGE:
                self.send()

    def send(self) -> None:
        if self._pieces:
            small = self._size < limits.STREAM_MESSAGE
            self._link.send((b"".join(self._pieces),) if small else tuple(self._pieces))
            self._pieces, self._size = [], 0


class _Sealing:
    """Seals answers and sends them; one thread at a time."""

    def __init__(
        self, link: StreamLink, answer: StreamAnswer, answering: Answering, journal: Journal
    ) -> None:
        self._message = _Message(link, answer.header)
        self._answer = answer
        self._answering = answering
        self._journal = journal

    def send(self, answers: Sequence[Answered], end: Trailer | None) -> None:
        """Send them in one message, as far as it takes them, and the end if it has come.

        Raises HungUpError, TimeoutError.
        """
        if answers:
            with self._journal.timed(Step.SEAL, len(answers)):
                for answered in answers:
                    self._message.add(_sealed(self._answer, self._answering, answered))
        if end is not None:
            self._message.add(self._answer.end(end, self._answering.floor))
        self._message.send()


def _sealed(answer: StreamAnswer, answering: Answering, answered: Answered) -> Iterable[Buffer]:
    floor = answering.floor * answered.count
    try:
        return answer.unit(answered.messages, answered.trailer, floor)
    except (ValueError, struct.error):  # most likely too long for a length prefix
        detail = "the answer cannot be sealed"
        failed = answering.trailer(Code.MODEL_FAILED, detail, answered.trailer.unit)
        return answer.unit((), failed, floor)
