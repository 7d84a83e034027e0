"""Streams for threads: many questions to one model, answered as they finish (SPEC 5.9)."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Self

from casemate.client.steps import remaining
from casemate.client.stream_answers import Ahead, FutureAnswer, PieceQueue
from casemate.client.stream_core import (
    DEFAULT_TIMEOUT_S,
    IN_FLIGHT,
    StreamCore,
    cancelled,
    in_flight_bound,
    no_room,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    import numpy as np

    from casemate.client.core import Inference
    from casemate.client.steps import Answers, Driver
    from casemate.client.stream_answers import Asked
    from casemate.client.stream_core import StreamPlace

__all__ = ["DEFAULT_TIMEOUT_S", "IN_FLIGHT", "Stream"]


class Stream:
    """One sealed stream to one model; thread-safe. Made by `Client.stream`.

    Leaving its block sends the end and waits for all answers; leaving it by an exception cancels
    what is under way, in the enclave too. A stream that failed is over: it is never repeated by
    itself, because some of its questions may have been answered.
    """

    def __init__(
        self, place: StreamPlace, driver: Driver, *, outputs: Sequence[str], in_flight: int
    ) -> None:
        """Begin the stream that ``place`` describes; ``driver`` is its client's."""
        self._in_flight = in_flight_bound(in_flight)
        self._deadline = place.deadline
        self._room = _Room(in_flight)
        self._outgoing: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._core = StreamCore(place, self._room, self._outgoing.put, outputs)
        left = remaining(place.deadline)
        self._call = place.connection.stream(self._messages(), left)
        course = self._core.receive(self._call)
        self._receiver = threading.Thread(
            target=driver.run, args=(course,), name="stream", daemon=True
        )
        self._receiver.start()

    # Asking

    def submit(self, inputs: Mapping[str, np.ndarray]) -> Future[Inference]:
        """Ask about ``inputs``; waits while ``in_flight`` questions are unanswered.

        Arrays are sealed while they are sent: leave them unchanged until the future is done. Of a
        model that answers piece by piece the future gets the last one. A future that is cancelled
        before its question is sent gives it up. Raises RequestError; the future raises RequestError
        (the service refused this question), or what ended the stream.
        """
        answer = FutureAnswer()
        self._ask(inputs, answer)
        return answer.future

    def map(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Inference]:
        """Yield the answers to ``batches`` in their order, asking ahead as far as ``in_flight``."""
        ahead = Ahead(self._in_flight)
        for batch in batches:
            self._ask(batch, ahead.next())
            while ahead.has_news:
                yield from ahead.in_order()
        while ahead.waiting:
            yield from ahead.in_order()

    def as_finished(
        self, batches: Iterable[Mapping[str, np.ndarray]]
    ) -> Iterator[tuple[int, Inference]]:
        """Yield (index, answer) to ``batches`` as they finish, asking ahead likewise."""
        ahead = Ahead(self._in_flight)
        for batch in batches:
            self._ask(batch, ahead.next())
            while ahead.has_news:
                yield ahead.first()
        while ahead.waiting:
            yield ahead.first()

    def pieces(self, inputs: Mapping[str, np.ndarray]) -> Iterator[Inference]:
        """Ask about ``inputs`` and yield the answer piece by piece as the model makes it.

        While nobody takes the next piece, the model waits, and so do the stream's other answers.
        """
        answer = PieceQueue(self._deadline)
        self._ask(inputs, answer)
        return answer.pieces()

    def _ask(self, inputs: Mapping[str, np.ndarray], answers: Answers) -> None:
        asked = self._core.question(inputs, answers)
        if not self._room.acquire(self._deadline):
            raise no_room()
        self._core.admit(asked)

    # Ending

    def cancel(self) -> None:
        """End the stream now; what runs for it in the enclave ends too."""
        self._core.fail(cancelled())
        self._call.cancel()
        self._receiver.join()

    def close(self) -> None:
        """Say that there are no more questions, and wait until all are answered.

        Raises what ended the stream, if it did not end well.
        """
        self._core.end()
        self._receiver.join()
        if self._core.failure is not None:
            raise self._core.failure

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
        sending = self._core.sending(self._in_flight)
        yield from sending.rest()
        complete = False
        while not complete:
            waiting = self._waiting()
            complete = None in waiting
            yield from sending.seal([asked for asked in waiting if asked is not None])
        yield from sending.end()

    def _waiting(self) -> Sequence[Asked | None]:
        """Wait for a question; return it with those that came meanwhile."""
        waiting = [self._outgoing.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._outgoing.get_nowait())
        return waiting


class _Room:
    """As a semaphore of `threading`, which costs each question some microseconds more."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting = 0
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)

    def acquire(self, deadline: float) -> bool:
        """Take a place, waiting for one until ``deadline``, in seconds of time.monotonic."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            self._waiting += 1
            left_s = max(0.0, deadline - time.monotonic())
            got = self._freed.wait_for(lambda: self._free, left_s)
            self._waiting -= 1
            self._free -= bool(got)
            return bool(got)

    def release(self, n: int = 1) -> None:
        with self._lock:
            self._free += n
            if self._waiting:
                self._freed.notify(n)
