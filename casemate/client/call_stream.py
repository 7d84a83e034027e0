"""Calls of many threads on one stream to a host (SPEC 9.6.2): less work for each, same meaning.

Whoever sends takes along what waits at that moment; of the calls that wait one reads for all. So
nobody waits for others to come, and a lone call changes no thread. The first calls, and all where
the host or this gRPC has no such stream, are for the caller to make by themselves.
"""

from __future__ import annotations

import functools
import threading
import time
from typing import TYPE_CHECKING, Final

import grpc

from casemate import limits
from casemate.client.call_book import BrokenError, CallBook, Failure
from casemate.client.carrier import Kind
from casemate.client.framed_call import FramedCall
from casemate.client.polled_call import NotOfferedError, PolledCall
from casemate.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate.client.carrier import Carrier, Event
    from casemate.client.framed import FramedHost
    from casemate.client.framed_way import FramedWay

METHOD: Final = "/casemate.v1.ConfidentialInference/InferMany"
_LOOK_S: Final = 1.0  # how often the watch looks, and after how long without calls it reads itself
_SOON_S: Final = 0.02
_STUCK_S: Final = 1.0  # how late the reading call may be if the host takes no bytes either
_CLOSE_S: Final = 5.0


class Opening:
    """When a client may begin a stream."""

    def __init__(self) -> None:
        self._calls = 0
        self._not_before = 0.0

    def wanted(self) -> bool:
        """Note a call that was made by itself; tell whether a stream is worth while now."""
        self._calls += 1
        return self._calls > limits.CALL_STREAM_AFTER and time.monotonic() >= self._not_before

    def over(self, refusal: grpc.StatusCode | None) -> None:
        """Note that a stream is over, or was refused; the next calls tell whether one is wanted."""
        self._calls = 0
        if refusal is not None:
            absent = refusal is grpc.StatusCode.UNIMPLEMENTED
            pause_s = limits.CALL_STREAM_ABSENT_S if absent else limits.CALL_STREAM_AGAIN_S
            self._not_before = time.monotonic() + pause_s


class CallStreams:
    """The stream of one channel, made anew when it has ended; thread-safe."""

    def __init__(
        self,
        channel: grpc.Channel,
        metadata: Sequence[tuple[str, str]],
        target: str,
        framed: FramedWay,
    ) -> None:
        self._begin: Callable[[], PolledCall] = lambda: PolledCall(channel, METHOD, metadata)
        self._framed = framed
        self._target = target
        self._lock = threading.Lock()
        self._opening = Opening()
        self._stream: _CallStream | None = None
        self._closed = False

    @property
    def in_frames(self) -> bool:
        """Whether calls go on a framed connection now."""
        stream = self._stream
        return stream is not None and stream.in_frames

    def call(self, request: bytes, timeout_s: float) -> bytes | None:
        """Return the answer to a small ``request``; None if the call is to be made by itself.

        Raises RequestError, as a call that is made by itself.
        """
        stream = self._stream
        if stream is None:
            self._open()
            return None
        return stream.call(request, timeout_s)

    def close(self) -> None:
        """End the stream; calls under way fail."""
        with self._lock:
            self._closed = True
            stream = self._stream
        if stream is not None:
            stream.close()

    def renew(self) -> None:
        """Begin another stream for the calls to come; those under way have their answers."""
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.retire()

    def _open(self) -> None:
        with self._lock:
            if self._closed or self._stream is not None or not self._opening.wanted():
                return
            framed = self._framed.begin()
            try:
                if framed is not None:
                    ended = functools.partial(self._framed_ended, framed.host)
                    self._stream = _CallStream(framed, self._target, ended)
                else:
                    self._stream = _CallStream(self._begin(), self._target, self._ended)
            except NotOfferedError:
                self._opening.over(grpc.StatusCode.UNIMPLEMENTED)

    def _framed_ended(self, host: FramedHost, refusal: grpc.StatusCode | None) -> None:
        if refusal is None:
            self._ended(None)
            return
        self._framed.led_nowhere(host)
        with self._lock:
            self._stream = None  # the next call begins one of gRPC

    def _ended(self, refusal: grpc.StatusCode | None) -> None:
        with self._lock:
            self._stream = None
            self._opening.over(refusal)


class _Question:
    """One call that waits; ``until`` in seconds of time.monotonic."""

    __slots__ = ("_wake", "outcome", "told", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.outcome: bytes | Failure | None = None
        self.told = False  # that its time is up
        self._wake = threading.Lock()
        self._wake.acquire()

    def settle(self, outcome: bytes | Failure) -> None:
        self.outcome = outcome
        self.rouse()

    def rouse(self) -> None:
        """Wake the call, or keep it from going to sleep once."""
        try:
            self._wake.release()
        except RuntimeError:
            return  # it was roused before

    def sleep(self, timeout_s: float) -> None:
        """Wait until roused."""
        self._wake.acquire(timeout=timeout_s)


class _CallStream:
    """One stream: begun by a thread of its own, which later watches over it."""

    def __init__(
        self, call: Carrier, target: str, ended: Callable[[grpc.StatusCode | None], None]
    ) -> None:
        self._call = call
        self._target = target
        self._ended = ended
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._reading = threading.Lock()
        self._book: CallBook[_Question] = CallBook()
        self._reader: _Question | None = None
        self._sending = False
        self._taking = False  # questions
        self._retired = False  # nothing more is to be asked
        self._closing = False  # this side was ended
        self._over = False
        self._next_look = 0.0
        self._used = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="call-stream", daemon=True)
        self._thread.start()

    @property
    def in_frames(self) -> bool:
        """As `CallStreams.in_frames`."""
        return self._taking and isinstance(self._call, FramedCall)

    def call(self, request: bytes, timeout_s: float) -> bytes | None:
        """As `CallStreams.call`."""
        now = time.monotonic()
        question = _Question(now + timeout_s)
        with self._lock:
            if not self._taking:
                return None
            self._used = now
            number = self._book.ask(question, request, timeout_s)
            message = self._taken()
        try:
            self._send(message)
            self._await(question)
        finally:
            self._leave(question, number)
        if isinstance(question.outcome, bytes):
            return question.outcome
        raise (question.outcome or self._late()).error()

    def close(self) -> None:
        """End the call and its thread; questions under way fail."""
        with self._lock:
            self._break(Failure(Code.UNAVAILABLE, f"{self._target}: the client was closed"))
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)

    def retire(self) -> None:
        """Take no further question; the stream ends when those under way have their answers."""
        with self._lock:
            self._retired, self._taking = True, False
            self._changed.notify()
        self._send(self._next_message())

    # A call

    def _await(self, question: _Question) -> None:
        while question.outcome is None and (left := question.until - time.monotonic()) > 0:
            if not self._reading.acquire(blocking=False):
                question.sleep(left)
                continue
            try:
                self._read_for(question)
            finally:
                self._reader = None
                self._reading.release()

    def _read_for(self, question: _Question) -> None:
        """Read for all until there is an answer; the watch wakes who does when its time is up."""
        with self._lock:
            self._reader = question
            if question.until < self._next_look:
                self._changed.notify()
        while question.outcome is None and time.monotonic() < question.until:
            self._poll()

    def _leave(self, question: _Question, number: int) -> None:
        with self._lock:
            self._used = time.monotonic()
            sends = question.outcome is None and (self._book.give_up(number) or self._retired)
            if not self._reading.locked():
                self._have_one_read()
        if sends:
            self._send(self._next_message())

    def _have_one_read(self) -> None:
        for question in self._book.under_way():
            question.rouse()
            return

    def _late(self) -> Failure:
        return Failure(Code.DEADLINE_EXCEEDED, f"{self._target}: no answer before the deadline")

    # Sending, without the lock: meanwhile others add to what goes next

    def _send(self, message: bytes | None) -> None:
        """Send ``message`` and what others wait to have sent, unless it is on its way for long.

        Then whoever sees that it was sent goes on.
        """
        try:
            while message is not None:
                if self._call.send(message):
                    return  # its SENT follows
                self._sending = False
                message = self._next_message() if self._book.waiting else None
        except BaseException:
            with self._lock:
                self._break(Failure(Code.UNAVAILABLE, f"{self._target}: sending was interrupted"))
            raise

    def _next_message(self) -> bytes | None:
        with self._lock:
            return self._taken()

    def _taken(self) -> bytes | None:
        """Return what is to be sent now, with the lock held; whoever gets it sends it."""
        if self._sending or self._over:
            return None
        message = self._book.next_message()
        self._sending = message is not None
        if message is None and self._retired and self._book.empty and not self._closing:
            self._closing = True
            self._call.end_sending()
        return message

    # Reading, by one thread at a time

    def _poll(self) -> None:
        """Take one event."""
        if self._call.over:
            return
        try:
            event = self._call.poll()
        except BaseException:
            with self._lock:
                self._break(Failure(Code.UNAVAILABLE, f"{self._target}: the wait was interrupted"))
            raise
        with self._lock:
            sends = self._happened(event)
        if sends:
            self._send(self._next_message())

    def _happened(self, event: Event) -> bool:
        """Note an event; return whether there may be something to send."""
        if event.kind is Kind.SENT:
            self._sending = False
            return True
        if event.kind is Kind.MESSAGE:
            try:
                last = self._book.answered(event.message)
            except BrokenError as error:
                detail = f"{self._target}: the host broke the rules of a stream: {error}"
                self._break(Failure(Code.UNAVAILABLE, detail))
                return False
            if last and not self._retired:
                self._retired, self._taking = True, False
                self._changed.notify()
        elif event.end is not None:
            self._break(event.end.failure(self._target))
        return self._retired

    def _break(self, failure: Failure) -> None:
        """End what is under way; the thread takes the call's last events."""
        if not self._over:
            self._over, self._taking = True, False
            self._call.cancel()
        self._book.fail(failure)
        self._changed.notify()

    # The stream's own thread

    def _watch(self) -> None:
        refusal = self._begun()
        try:
            while not self._over:
                self._look()
            with self._reading:
                while not self._call.over:
                    self._poll()
        finally:
            self._ended(refusal)

    def _begun(self) -> grpc.StatusCode | None:
        """Wait for the host's first message, before which nothing is sent; return its refusal."""
        while True:
            event = self._call.poll()
            if event.end is not None:
                with self._lock:
                    self._break(event.end.failure(self._target))
                return None if self._retired else event.end.code()
            if event.kind is Kind.MESSAGE:
                break
        with self._lock:
            self._happened(event)
            self._taking = not (self._over or self._retired)
        return None

    def _look(self) -> None:
        """Wake a reading call whose time is up; where there is none for long, read in its place."""
        with self._lock:
            now = time.monotonic()
            reader = self._reader
            if reader is not None and reader.until <= now:
                self._wake(reader, late_s=now - reader.until)
            idle = self._book.empty and now - self._used > _LOOK_S
            if self._taking and (reader is not None or not idle):
                soon = [now + _LOOK_S] + ([max(reader.until, now + _SOON_S)] if reader else [])
                self._next_look = min(soon)
                self._changed.wait(self._next_look - now)
                return
        if self._reading.acquire(timeout=_SOON_S):
            try:
                while not self._over and (self._used <= now or not self._taking):
                    self._poll()
            finally:
                self._reading.release()
                with self._lock:
                    self._have_one_read()

    def _wake(self, reader: _Question, late_s: float) -> None:
        if not (reader.told or self._sending):
            reader.told = True
            self._sending = self._call.rouse()
        elif late_s > _STUCK_S:
            self._break(Failure(Code.UNAVAILABLE, f"{self._target}: the host takes nothing"))
