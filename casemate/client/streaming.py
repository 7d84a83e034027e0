"""Streams: many questions to one model on one sealed stream, answered as they finish (SPEC 5.9)."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from casemate import limits, tensors
from casemate.client.stream_answers import Asked, FutureAnswer, PieceQueue, Released
from casemate.envelope.failure import answer_open_failed
from casemate.envelope.sealed_chunks import encode_chunk, encode_header, parse_chunks
from casemate.errors import CasemateError, Code, EnvelopeError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    import numpy as np

    from casemate.attestation import VerifiedEvidence
    from casemate.client.core import Inference
    from casemate.client.stream_answers import Answers
    from casemate.envelope.streaming import AnswerUnit, SealedStream
    from casemate.wire import Buffer

IN_FLIGHT: Final = 32  # half of what the enclave reads ahead
DEFAULT_TIMEOUT_S: Final = limits.CALL_BUDGET_MAX_S


class HostStream(Protocol):
    """The messages of an answer as the host relays them; raises RequestError."""

    def __iter__(self) -> Iterator[bytes]:
        """Give them in order."""
        ...

    def cancel(self) -> None:
        """End the call; iteration ends with an error."""
        ...


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """Where a stream goes: its sealing, the way to the host, and what its answers are judged by."""

    sealed: SealedStream
    dial: Callable[[Iterator[bytes], float], HostStream]
    released: Released
    # H(instance_config) -> evidence that was verified; raises EnvelopeError.
    answered_by: Callable[[bytes], VerifiedEvidence]
    failed: Callable[[CasemateError], None]


class Stream:
    """One sealed stream to one model; thread-safe. Made by `Client.stream`.

    Leaving its block sends the end and waits for all answers; leaving it by an exception cancels
    what is under way, in the enclave too. A stream that failed is over: it is never repeated by
    itself, because some of its questions may have been answered.
    """

    def __init__(
        self,
        place: StreamPlace,
        *,
        outputs: Sequence[str] = (),
        in_flight: int = IN_FLIGHT,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Begin the stream; ``timeout_s`` is for all of it, and at most ten minutes are kept."""
        if not 1 <= in_flight <= limits.STREAM_UNITS_MAX:
            detail = f"in_flight: not within 1 and {limits.STREAM_UNITS_MAX}"
            raise RequestError(Code.INVALID_ARGUMENT, detail)
        self._place = place
        self._outputs = outputs
        self._in_flight = in_flight
        self._deadline = time.monotonic() + timeout_s
        self._room = threading.Semaphore(in_flight)
        self._outgoing: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending: dict[int, Asked] = {}
        self._asked = 0
        self._ended = False
        self._failure: CasemateError | None = None
        self._call = place.dial(self._messages(), timeout_s)
        self._receiver = threading.Thread(target=self._receive, name="stream", daemon=True)
        self._receiver.start()

    # Asking

    def submit(self, inputs: Mapping[str, np.ndarray]) -> Future[Inference]:
        """Ask about ``inputs``; waits while ``in_flight`` questions are unanswered.

        Arrays are sealed while they are sent: leave them unchanged until the future is done. Of a
        model that answers piece by piece the future gets the last one. Raises RequestError; the
        future raises RequestError (the service refused this question), or what ended the stream.
        """
        answer = FutureAnswer()
        self._ask(inputs, answer)
        return answer.future

    def map(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Inference]:
        """Yield the answers to ``batches`` in their order, asking ahead as far as ``in_flight``."""
        window: deque[Future[Inference]] = deque()
        for batch in batches:
            window.append(self.submit(batch))
            while window and (window[0].done() or len(window) >= self._in_flight):
                yield window.popleft().result()
        while window:
            yield window.popleft().result()

    def as_finished(
        self, batches: Iterable[Mapping[str, np.ndarray]]
    ) -> Iterator[tuple[int, Inference]]:
        """Yield (index, answer) to ``batches`` as they finish, asking ahead likewise."""
        done: queue.SimpleQueue[tuple[int, Future[Inference]]] = queue.SimpleQueue()
        waiting = 0

        def next_done() -> tuple[int, Inference]:
            index, future = done.get()
            return index, future.result()

        def ask(index: int, batch: Mapping[str, np.ndarray]) -> None:
            self.submit(batch).add_done_callback(lambda future: done.put((index, future)))

        for index, batch in enumerate(batches):
            ask(index, batch)
            waiting += 1
            while waiting and (not done.empty() or waiting >= self._in_flight):
                yield next_done()
                waiting -= 1
        for _ in range(waiting):
            yield next_done()

    def pieces(self, inputs: Mapping[str, np.ndarray]) -> Iterator[Inference]:
        """Ask about ``inputs`` and yield the answer piece by piece as the model makes it.

        While nobody takes the next piece, the model waits, and so do the stream's other answers.
        """
        answer = PieceQueue()
        self._ask(inputs, answer)
        return answer.pieces()

    def _ask(self, inputs: Mapping[str, np.ndarray], answers: Answers) -> None:
        if not inputs:
            raise RequestError(Code.INVALID_ARGUMENT, "no inputs")
        message = tensors.request_pieces(inputs, self._outputs)
        if sum(map(len, message)) > limits.STREAM_PART_MAX:
            raise RequestError(Code.TOO_LARGE, "a message has at most 4 GiB")
        if not self._room.acquire(timeout=max(0.0, self._deadline - time.monotonic())):
            raise RequestError(Code.DEADLINE_EXCEEDED, "the deadline of the stream has passed")
        with self._lock:
            if self._failure is None and not self._ended:
                self._outgoing.put(Asked(message, answers))
                return
        self._room.release()
        raise self._failure or RequestError(Code.INVALID_ARGUMENT, "the stream was closed")

    # Ending

    def cancel(self) -> None:
        """End the stream now; what runs for it in the enclave ends too."""
        self._fail(RequestError(Code.UNAVAILABLE, "the stream was cancelled"))
        self._call.cancel()
        self._receiver.join()

    def close(self) -> None:
        """Say that there are no more questions, and wait until all are answered.

        Raises what ended the stream, if it did not end well.
        """
        with self._lock:
            if not self._ended:
                self._ended = True
                self._outgoing.put(None)
        self._receiver.join()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.cancel()

    # Sending: gRPC takes messages from this generator, in a thread of its own, as fast as they go

    def _messages(self) -> Iterator[bytes]:
        sealed = self._place.sealed
        message = _Message(sealed.header)
        message.add(sealed.opening())
        while True:
            try:
                asked = self._outgoing.get_nowait()
            except queue.Empty:
                yield from message.take()
                asked = self._outgoing.get()
            if asked is None:
                message.add(sealed.end())
                yield from message.take()
                return
            self._register(asked)
            for chunk in sealed.question(asked.message):
                message.add((chunk,))
                if message.full:
                    yield from message.take()
            asked.sent(keep=self._place.released.receipt)

    def _register(self, asked: Asked) -> None:
        with self._lock:
            self._pending[self._asked] = asked
            self._asked += 1

    # Receiving

    def _receive(self) -> None:
        try:
            self._answers()
        except CasemateError as error:
            self._fail(error)
        except Exception:  # noqa: BLE001 - whatever it is, everybody who waits must hear of it
            self._fail(answer_open_failed())
        finally:
            self._call.cancel()
            self._outgoing.put(None)  # the sending thread ends

    def _answers(self) -> None:
        sealed, evidence = self._place.sealed, None
        for message in self._call:
            try:
                header, chunks = parse_chunks(message, first=evidence is None)
            except EnvelopeError:
                raise answer_open_failed() from None
            if evidence is None:
                evidence = self._place.answered_by(sealed.begin_answer(header))
            for chunk in chunks:
                unit = sealed.answer(chunk)
                if unit is not None:
                    self._release(unit, evidence)
        if not sealed.ended:
            raise answer_open_failed()

    def _release(self, unit: AnswerUnit, evidence: VerifiedEvidence) -> None:
        trailer = unit.trailer
        if unit.last:
            self._check_end(unit)
            return
        with self._lock:
            take = self._pending.pop if trailer.final else self._pending.get
            asked = take(trailer.unit, None)
        if asked is None:
            raise answer_open_failed()
        try:
            inference = self._place.released.inference(asked, unit, evidence)
        except CasemateError as error:
            asked.answers.failed(error)
        else:
            asked.answers.answered(inference, final=trailer.final)
        if trailer.final:
            self._room.release()

    def _check_end(self, unit: AnswerUnit) -> None:
        trailer = unit.trailer
        self._place.released.check_status(trailer)
        if self._pending or not self._ended or trailer.unit != self._asked:
            raise answer_open_failed()

    def _fail(self, error: CasemateError) -> None:
        """Tell all who wait why the stream is over; the first reason counts."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
            pending = [*self._pending.values()]
            self._pending.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                asked = self._outgoing.get_nowait()
                if asked is not None:
                    pending.append(asked)
        self._place.failed(error)
        for asked in pending:
            asked.answers.failed(error)
        self._room.release(limits.STREAM_UNITS_MAX)  # whoever waits for room learns of it


class _Message:
    """Chunks that leave together."""

    def __init__(self, header: bytes) -> None:
        self._pieces: list[Buffer] = [*encode_header(header)]
        self._size = 0

    @property
    def full(self) -> bool:
        return self._size >= limits.STREAM_MESSAGE

    def add(self, chunks: Iterable[Buffer]) -> None:
        for chunk in chunks:
            self._pieces += encode_chunk(chunk)
            self._size += len(chunk)

    def take(self) -> Iterator[bytes]:
        if self._pieces:
            yield b"".join(self._pieces)
            self._pieces, self._size = [], 0
