"""Who waits for the answer to a question of a stream, and what it is judged by (SPEC 5.9)."""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Final, TypeAlias

from casemate import limits
from casemate.client.core import Answer, together_next
from casemate.client.steps import remaining
from casemate.errors import CasemateError, Code, RequestError, SealedStatusError
from casemate.receipts import Shown, StoredReceipt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casemate.attestation import LogEntry, VerifiedEvidence
    from casemate.client.core import Inference
    from casemate.client.steps import Answers
    from casemate.envelope.messages import Trailer
    from casemate.envelope.streaming import AnswerUnit
    from casemate.wire import Buffer

Finished: TypeAlias = "tuple[int, Inference | CasemateError]"  # by its index
PIECES: Final = 8  # that wait for whoever takes them; then the enclave waits


class FutureAnswer:
    """Resolves a future with the answer, of a model with several pieces the last.

    It can be cancelled until the question is sent.
    """

    piecewise = False
    taker = None

    def __init__(self) -> None:
        self.future: Future[Inference] = Future()

    def begin(self) -> bool:
        """Tell whether the future was not cancelled; from now on it cannot be."""
        return self.future.set_running_or_notify_cancel()

    def answered(self, inference: Inference, *, final: bool) -> None:
        """Resolve the future, unless the stream was cancelled meanwhile."""
        if final:
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(inference)

    def failed(self, error: CasemateError) -> None:
        """Fail the future, unless it was cancelled."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


class AheadAnswer:
    """Hands the answer, of a model with several pieces the last, or the failure to ``taker``."""

    piecewise = False
    __slots__ = ("_index", "taker")

    def __init__(self, index: int, taker: Ahead) -> None:
        """``index``: by which whoever takes it knows it."""
        self._index = index
        self.taker = taker

    def begin(self) -> bool:
        """It is wanted."""
        return True

    def answered(self, inference: Inference, *, final: bool) -> None:
        """Hand it over; the taker is to be woken."""
        if final:
            self.taker.finished.append((self._index, inference))

    def failed(self, error: CasemateError) -> None:
        """Hand over the failure."""
        self.taker.finished.append((self._index, error))
        self.taker.wake()


class Ahead:
    """What one iteration asks ahead: at most so many questions that it has not taken answers to.

    For one thread, beside those that answer: it is woken once for all that comes together, since a
    wake costs more than most of the steps of an answer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.finished: collections.deque[Finished] = collections.deque()
        self._news = threading.Lock()  # held while there is none
        self._news.acquire()
        self._early: dict[int, Inference | CasemateError] = {}
        self._asked = 0
        self._taken = 0

    def next(self) -> AheadAnswer:
        """Return what gets the answer to the next question."""
        self._asked += 1
        return AheadAnswer(self._asked - 1, self)

    def wake(self) -> None:
        """As ``Taker``."""
        with contextlib.suppress(RuntimeError):  # it is told of news already
            self._news.release()

    def _next_finished(self) -> Finished:
        while not self.finished:
            self._news.acquire()
        return self.finished.popleft()

    @property
    def waiting(self) -> bool:
        """Whether answers are still to be taken."""
        return self._taken < self._asked

    @property
    def has_news(self) -> bool:
        """Whether answers are to be taken before the next question is asked."""
        return bool(self.finished) or self._asked - self._taken >= self._most

    def first(self) -> tuple[int, Inference]:
        """Return the answer that finishes next, and its index; raises what it failed with."""
        index, outcome = self._next_finished()
        self._taken += 1
        return index, _released(outcome)

    def in_order(self) -> Iterator[Inference]:
        """Wait for one more answer; yield those whose turn it is, if any. Raises likewise."""
        index, outcome = self._next_finished()
        self._early[index] = outcome
        while self._taken in self._early:
            self._taken += 1
            yield _released(self._early.pop(self._taken - 1))


def _released(outcome: Inference | CasemateError) -> Inference:
    if isinstance(outcome, CasemateError):
        raise outcome
    return outcome


class PieceQueue:
    """Hands pieces to whoever iterates; while it is full, nothing more is received."""

    piecewise = True
    taker = None

    def __init__(self, deadline: float) -> None:
        """``deadline`` of the stream, in seconds of time.monotonic."""
        self._deadline = deadline
        self._queue: queue.Queue[tuple[Inference, bool] | CasemateError] = queue.Queue(PIECES)
        self._over = threading.Event()

    def begin(self) -> bool:
        """Tell whether somebody still iterates."""
        return not self._over.is_set()

    def answered(self, inference: Inference, *, final: bool) -> None:
        """Queue a piece, unless nobody wants it any more; raises RequestError."""
        while not self._over.is_set():
            try:
                self._queue.put((inference, final), timeout=limits.STREAM_LOOK_S)
            except queue.Full:
                remaining(self._deadline)
                continue
            return

    def failed(self, error: CasemateError) -> None:
        """Queue the failure, in place of what nobody has taken yet if need be."""
        self._over.set()
        while True:
            try:
                self._queue.put_nowait(error)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()
            else:
                return

    def pieces(self) -> Iterator[Inference]:
        """Yield every piece; raises what the question failed with."""
        try:
            while True:
                item = self._queue.get()
                if isinstance(item, CasemateError):
                    raise item
                inference, final = item
                yield inference
                if final:
                    return
        finally:
            self._over.set()


class Asked:
    """One question of a stream; its message is kept only until it is sent, or for a receipt."""

    __slots__ = ("answers", "message", "messages", "rows", "size")

    def __init__(
        self, message: Sequence[Buffer], size: int, answers: Answers, rows: int = 1
    ) -> None:
        """``message`` in pieces, ``size`` bytes together; ``rows`` as far as a client can tell."""
        self.message = message
        self.size = size
        self.rows = rows
        self.answers = answers
        self.messages: list[bytes] = []  # of the answer, for a receipt

    def sent(self, *, keep: bool) -> None:
        """Let go of the message, unless it is to be kept."""
        if not keep:
            self.message = ()


class Released:
    """Makes an answer of what was opened, if it is by the model that was pinned."""

    def __init__(
        self,
        entry: LogEntry,
        header: bytes,
        together: dict[tuple[str, int], int],
        *,
        receipt: bool,
    ) -> None:
        """``header`` of the stream's request, as receipts name it; ``together`` of its session."""
        self._entry = entry
        self._model = entry.name, entry.version
        self._header = header
        self._together = together
        self.receipt = receipt

    @property
    def most(self) -> int:
        """How many messages a unit may have, as far as answers have said (SPEC 5.9.3)."""
        return 1 if self.receipt else self._together.get(self._model, 1)

    def check_status(self, trailer: Trailer) -> None:
        """Raise RequestError unless the status is OK."""
        if trailer.status is not Code.OK:
            if trailer.status is Code.INVALID_REQUEST:
                self._together.pop(self._model, None)  # it may have been too many in one unit
            raise SealedStatusError(trailer.status, trailer.detail)

    def answer(self, asked: Asked, unit: AnswerUnit, evidence: VerifiedEvidence) -> Answer:
        """Return the answer to ``asked``, the first message of its unit; raises RequestError."""
        trailer = unit.trailer
        self.check_status(trailer)
        messages = unit.messages
        if not messages or trailer.digest != self._entry.digest:
            raise RequestError(Code.DIGEST_MISMATCH, "another model answered than was pinned")
        self._together[self._model] = together_next(messages, trailer.questions)
        receipt = None
        if self.receipt:
            asked.messages += map(bytes, messages)
            receipt = self._stored(asked, trailer, evidence)
        return Answer(messages, self._entry, evidence, receipt)

    def _stored(
        self, asked: Asked, trailer: Trailer, evidence: VerifiedEvidence
    ) -> StoredReceipt | None:
        """Return the receipt, with the last piece, and all that it takes to judge it later."""
        if trailer.receipt is None:
            return None
        return StoredReceipt(
            receipt=trailer.receipt,
            evidence=evidence.bundle.serialize(),
            header=self._header,
            question=Shown(trailer.question_blinder or b"", (b"".join(asked.message),)),
            answer=Shown(trailer.answer_blinder or b"", tuple(asked.messages)),
        )
