"""One connection to the enclave that many calls share (SPEC 9.2.1).

It has no thread: of the calls that wait one reads for all, until its own answer is there, and then
wakes another. What calls want to send while one of them is sending leaves together. So a busy host
moves many small messages by one call into the kernel, and an idle one wakes nobody. A call that
leaves without its answer tells the enclave so, and its number rests until the answer has come.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from casemate import frames, limits, numbered
from casemate.errors import Code, FrameError
from casemate.frames import ANSWER, ERROR, FrameType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.numbered import Numbered
    from casemate.wire import Buffer
    from casemate_host.call import Call

_READ: Final = 64 * limits.KIB
_LOOK_S: Final = 0.05  # how late the reading call may notice its deadline, or that it was cancelled
_LOOK_MS: Final = _LOOK_S * 1000
_SEND_S: Final = 5.0  # an enclave that takes nothing for so long is lost
_GRACE_S: Final = 0.5  # the enclave ends what exceeds its budget itself; this is for its answer
_FRESH_S: Final = 0.05
_NUMBERS: Final = 1 << 32
_TIMEVAL: Final = struct.Struct("@ll")


class UnsentError(Exception):
    """The connection died before the kernel took the whole question: it was not executed."""


class Asking(Protocol):
    """One question under way."""

    number: int
    frame: tuple[Buffer, ...]
    size: int
    answer: Numbered | None
    lost: FrameError | None
    unsent: bool

    @property
    def done(self) -> bool:
        """Whether there is an answer, or will be none."""
        ...

    @property
    def reads(self) -> bool:
        """Whether whoever waits for it reads when roused."""
        ...

    def rouse(self) -> None:
        """Wake whoever waits for it, or keep it from going to sleep once."""
        ...


class _Question:
    """One call that waits, or says that it does no longer."""

    __slots__ = ("_wake", "answer", "frame", "lost", "number", "size", "unsent")

    def __init__(self, number: int, frame: tuple[Buffer, ...]) -> None:
        self.number = number
        self.frame = frame
        self.size = sum(map(len, frame))
        self.answer: Numbered | None = None
        self.lost: FrameError | None = None
        self.unsent = False
        self._wake = threading.Lock()
        self._wake.acquire()

    @property
    def reads(self) -> bool:
        """Whether its call reads when roused."""
        return True

    @property
    def done(self) -> bool:
        """Whether there is an answer, or will be none."""
        return self.answer is not None or self.lost is not None

    def rouse(self) -> None:
        """Wake the call, or keep it from going to sleep once."""
        try:
            self._wake.release()
        except RuntimeError:
            return  # it was roused before

    def sleep(self, timeout_s: float) -> None:
        """Wait until roused."""
        self._wake.acquire(timeout=timeout_s)

    def shutdown(self, _how: int) -> None:
        """Notice that the call was cancelled; see ``Call.attach``."""
        self.rouse()


class SharedConnection:
    """A connected socket, made blocking, with any number of exchanges under way."""

    def __init__(self, channel: socket.socket) -> None:
        channel.settimeout(None)
        look, send = (_TIMEVAL.pack(*divmod(int(s * 1e6), 1_000_000)) for s in (_LOOK_S, _SEND_S))
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, look)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, send)
        self._channel = channel
        self._arriving = select.poll()
        self._arriving.register(channel, select.POLLIN)
        self._frames = numbered.FrameBuffer(FrameType.NUMBERED | ANSWER, limits.FRAME_MAX)
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._questions: dict[int, Asking] = {}
        self._given_up: set[int] = set()
        self._outbox: list[Asking] = []
        self._sender: Asking | None = None
        self._number = 0
        self._used = time.monotonic()
        self._over = False

    @property
    def over(self) -> bool:
        """Whether it can take no further question."""
        return self._over

    def exchange(self, kind: FrameType, payload: Buffer, call: Call) -> Numbered:
        """Ask, and return the answer, which may be an error frame.

        Raises UnsentError; FrameError: DEADLINE_EXCEEDED, UNAVAILABLE if the enclave went away,
        INTERNAL for an answer that is none, or what the enclave said before it hung up.
        """
        self._take_late()
        question = self._register(kind, payload, call)
        try:
            call.attach(question)
            self._send_out(question)
            answer = self._await(question, call)
        finally:
            call.detach()
            self._leave(question)
        if answer.type not in {ERROR, kind | ANSWER}:
            self.close()
            raise FrameError(Code.INTERNAL, f"answer of type {answer.type} to one of type {kind}")
        return answer

    def close(self) -> None:
        """End the connection: whoever waits fails."""
        with self._lock:
            self._over = True
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
            self._close_unused()

    def retire(self) -> None:
        """Take no further question; it ends when those under way have."""
        with self._lock:
            self._over = True
            self._close_unused()

    def _register(self, kind: FrameType, payload: Buffer, call: Call) -> _Question:
        budget_ms = int(call.remaining_s() * 1000) or 1
        with self._lock:
            if self._over or not self._is_quiet():
                raise UnsentError
            number = self._next_number()
            question = _Question(number, numbered.question(number, kind, payload, budget_ms))
            self._questions[number] = question
            self._outbox.append(question)
            return question

    def _next_number(self) -> int:
        while (number := self._number) in self._questions or number in self._given_up:
            self._number = (number + 1) % _NUMBERS
        self._number = (number + 1) % _NUMBERS
        return number

    def _is_quiet(self) -> bool:
        """Whether the connection is open and, as it must be between exchanges, silent."""
        if self._questions or self._given_up or time.monotonic() - self._used < _FRESH_S:
            return True
        poll = select.poll()  # a thread may be waiting at the other one
        poll.register(self._channel, select.POLLIN)
        if not poll.poll(0):
            return True
        self._over = True
        self._close_unused()
        return False

    def _leave(self, question: _Question) -> None:
        with self._lock:
            self._questions.pop(question.number, None)
            word = None if question.done or self._over else self._give_up(question)
            self._used = time.monotonic()
            self._close_unused()
            self._have_one_read()
        if word is not None:
            self._send_out(word)

    def _give_up(self, question: Asking) -> _Question | None:
        """Return what tells the enclave that nobody waits; None if it was never asked."""
        if question in self._outbox:
            self._outbox.remove(question)
            return None
        self._given_up.add(question.number)
        word = _Question(question.number, numbered.cancel(question.number))
        self._outbox.append(word)
        return word

    def _have_one_read(self) -> None:
        """Whoever leaves sees to it that somebody reads.

        Not who is sending: the enclave may take no more before somebody has read.
        """
        if self._reading.locked():
            return
        for question in self._questions.values():
            if question is not self._sender and question.reads:
                question.rouse()
                return

    def _close_unused(self) -> None:
        if self._over and not self._questions:
            self._channel.close()

    # Sending

    def _send_out(self, mine: Asking) -> None:
        """Send what waits, unless somebody is at it, who then sends this as well."""
        while True:
            with self._lock:
                if self._sender not in {None, mine}:
                    return
                batch, self._outbox = self._outbox, []
                self._sender = mine if batch else None
            if not batch:
                return
            try:
                self._send(batch)
            except BaseException:
                self._sender = None
                raise

    def _send(self, batch: list[Asking]) -> None:
        buffers = [piece for question in batch for piece in question.frame]
        size = sum([question.size for question in batch])
        sent = 0
        try:
            while sent < size:
                taken = self._channel.sendmsg(buffers)
                sent += taken
                if sent < size:
                    buffers = frames.unsent(buffers, taken)
        except OSError:
            self._over = True
            for question in batch:
                sent -= question.size
                question.unsent = sent < 0
            # Waiting calls find the end by reading, after what the enclave may have said before it.
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)

    # Receiving

    def _await(self, question: _Question, call: Call) -> Numbered:
        until = time.monotonic() + call.remaining_s() + _GRACE_S
        while not question.done:
            left = until - time.monotonic()
            if call.cancelled or left <= 0:
                raise FrameError(Code.DEADLINE_EXCEEDED, "no answer before the deadline")
            if not self._reading.acquire(blocking=False):
                question.sleep(left)
                continue
            try:
                self._read(question)
            finally:
                self._reading.release()
        if question.answer is not None:
            return question.answer
        if question.unsent and question.lost is not None and question.lost.code is Code.UNAVAILABLE:
            raise UnsentError
        raise question.lost or AssertionError

    def _take_late(self) -> None:
        """Take what has come of questions given up, unless somebody reads or is about to."""
        if not self._given_up or self._questions or not self._reading.acquire(blocking=False):
            return
        try:
            self._read_once(socket.MSG_DONTWAIT)
        finally:
            self._reading.release()
            with self._lock:
                self._close_unused()
                self._have_one_read()

    def _read(self, mine: _Question) -> None:
        """Read once, and hand out the answers that have arrived."""
        if not mine.done:
            self._read_once(0)

    def _read_once(self, how: int) -> bool:
        """Tell whether something came."""
        # Bytes are waited for by poll: recv is woken whenever the enclave takes some, too.
        if not how and not self._arriving.poll(_LOOK_MS):
            return False
        try:
            missing = min(self._frames.missing, limits.VSOCK_AWAITED)
            how |= socket.MSG_WAITALL if missing else 0
            data = self._channel.recv(missing or _READ, how)
            if data:
                self._frames.add(data)
                self._hand_out()
                return True
            self._lost(FrameError(Code.UNAVAILABLE, "the enclave went away"))
        except BlockingIOError:
            return False
        except (OSError, FrameError):
            self._lost(self._last_word())
        return False

    def _hand_out(self) -> None:
        answered: list[Asking] = []
        try:
            with self._lock:
                while (answer := self._frames.take()) is not None:
                    question = self._questions.pop(answer.number, None)
                    if question is None:  # its call has given up
                        self._given_up.discard(answer.number)
                        continue
                    question.answer = answer
                    answered.append(question)
                self._used = time.monotonic()
        finally:  # what came before a frame that is none is answered all the same
            self._pass_on(answered)

    def _pass_on(self, answered: Sequence[Asking]) -> None:
        for question in answered:
            question.rouse()

    def _last_word(self) -> FrameError:
        """What the enclave said when it refused the connection, if it did."""
        rest = self._frames.rest
        if len(rest) > frames.HEAD_BYTES and rest[4] == ERROR:
            return frames.remote_error(rest[frames.HEAD_BYTES :])
        return FrameError(Code.UNAVAILABLE, "the enclave went away before it answered")

    def _lost(self, error: FrameError) -> None:
        with self._lock:
            self._over = True
            for question in self._outbox:  # the kernel was never given these
                question.unsent = True
            self._outbox = []
            for question in self._questions.values():
                if not question.done:
                    question.lost = error
                    question.rouse()
