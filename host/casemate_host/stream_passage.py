"""A stream on its way between client and enclave: its frames passed on (SPEC 9.3.2, 9.6.3).

One thread serves both directions, so that it hears at once of a client that leaves, whoever keeps
it waiting. Of a frame it looks at the head; the bytes leave as they came, mostly many frames by one
call. Promise: of each direction one block is kept, and read is what there is room for.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import TYPE_CHECKING, ClassVar, Final

from casemate import frames, limits
from casemate.errors import Code, FrameError
from casemate.frames import ANSWER, COUNTED, ERROR, HEAD_BYTES, FrameType
from casemate_host.framed_channel import GoneError

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD: Final = struct.Struct(">IB")
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
_READABLE: Final = select.POLLIN | select.POLLHUP | select.POLLERR
_BLOCK: Final = 256 * limits.KIB
_ERROR_MAX: Final = 4 * limits.KIB  # an error frame's payload: a code and a detail


class LostError(Exception):
    """The enclave went away, or sent what it must not."""


class _Way:
    """One direction: what has been read of it and not been taken, and where its frames end."""

    _passes_end: ClassVar[bool]  # whether the frame without payload is passed on as well

    def __init__(
        self, source: socket.socket, sink: socket.socket, kind: int, first: bytes = b""
    ) -> None:
        """``first``: whole frames that go ahead."""
        self._source = source
        self._sink = sink
        self._kind = kind
        self._block = memoryview(bytearray(_BLOCK))
        self._held = b""  # of the block, a head that is not whole yet
        self._left = 0  # bytes of the frame in hand that have not come
        self._ends = 0  # of frames, so far
        self.pending: memoryview | None = memoryview(first) if first else None
        self.within = False  # a frame, which has begun and not ended
        self.since = 0.0  # when it began
        self.carried = 0  # bytes of payload, so far
        self.complete = False
        self.error: FrameError | None = None

    @property
    def clear(self) -> bool:
        """Whether what the other side was given ends with a frame."""
        return self.pending is None and not self._left

    def read(self) -> None:
        """Read what is there, when nothing is pending; raises OSError at the end, FrameError."""
        held, block = len(self._held), self._block
        if held:
            block[:held] = self._held
            block = block[held:]
        try:
            got = self._source.recv_into(block, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not got:
            raise ConnectionResetError
        ends, end = self._ends, held + got
        at = self._walk(end)
        self.pending = self._block[:at] if at else None
        self._held = bytes(self._block[at:end]) if at < end else b""
        within = bool(self._left or self._held)
        if within and (not self.within or self._ends != ends):
            self.since = time.monotonic()
        self.within = within

    def send(self) -> None:
        """Give away what the other side takes at once of what is pending; raises OSError."""
        pending = self.pending
        if pending is None:
            return
        try:
            sent = self._sink.send(pending, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        self.pending = pending[sent:] if sent < len(pending) else None

    def _walk(self, end: int) -> int:
        """Return where that ends which may be passed on of the block's first ``end`` bytes."""
        at, block = 0, self._block
        if self._left:
            at = self._take(0, end)
        while end - at >= HEAD_BYTES and not self.complete:
            length, kind = _HEAD.unpack_from(block, at)
            size = length - COUNTED
            if kind != self._kind:
                self._other(kind, size, block[at + HEAD_BYTES : end])
                return at
            if not 0 < size <= limits.STREAM_MESSAGE_MAX:
                if size:
                    code = Code.MALFORMED if size < 0 else Code.TOO_LARGE
                    raise FrameError(code, f"a message of {size} bytes")
                self.complete = True
                return at + HEAD_BYTES * self._passes_end
            self._left = size
            at = self._take(at + HEAD_BYTES, end)
        return at

    def _take(self, at: int, end: int) -> int:
        """Go on within the frame in hand; return where it ends, or what has come of it."""
        left = self._left
        taken = min(left, end - at)
        self._left = left - taken
        self.carried += taken
        if taken == left:
            self._ends += 1
        return at + taken

    def _other(self, kind: int, _size: int, _payload: memoryview) -> None:
        """Take a frame of another type, if there may be one; raises FrameError."""
        raise FrameError(Code.MALFORMED, f"a frame of type {kind} within a stream")


class _Questions(_Way):
    """The client's frames; after its last one there is nothing to come."""

    _passes_end = True

    def read(self) -> None:
        """As above; raises FrameError for what follows the last frame."""
        super().read()
        if self.complete and self.within:
            raise FrameError(Code.MALFORMED, "a frame after the stream's end")


class _Answers(_Way):
    """The enclave's frames; the last one is not passed on: it is for who ends the stream."""

    _passes_end = False

    def _other(self, kind: int, size: int, payload: memoryview) -> None:
        if kind != ERROR or not 0 <= size <= _ERROR_MAX:
            raise FrameError(Code.INTERNAL, f"a frame of type {kind} within a stream")
        if len(payload) >= size:
            self.complete = True
            self.error = frames.remote_error(bytes(payload[:size]))


class StreamPassage:
    """One stream between two connected sockets."""

    def __init__(
        self,
        client: socket.socket,
        enclave: socket.socket,
        first: bytes,
        *,
        until: float,
        within_s: float,
    ) -> None:
        """``first``: the client's first frame, whole, as the enclave is to have it.

        ``until`` in seconds of ``time.monotonic``; ``within_s``: how long the client may take to
        send one frame.
        """
        self._questions = _Questions(client, enclave, FrameType.STREAM, first)
        self._answers = _Answers(enclave, client, FrameType.STREAM | ANSWER)
        self._client, self._enclave = client.fileno(), enclave.fileno()
        self._until = until
        self._within_s = within_s
        self._deaf = False  # the enclave takes no more: its answer says why
        self._poll = select.poll()
        self._watched: tuple[bool, bool] | None = None

    @property
    def clear(self) -> bool:
        """Whether what the client was sent ends with a frame, so that another may follow."""
        return self._answers.clear

    @property
    def answered(self) -> int:
        """Bytes of messages that the enclave answered."""
        return self._answers.carried

    def run(self, spend: Callable[[int], None]) -> None:
        """Pass on until the enclave's last frame, which remains to be sent.

        ``spend`` is told of the bytes of the client's messages. Raises FrameError: the enclave's
        own, MALFORMED and TOO_LARGE for frames of the client that may not be, DEADLINE_EXCEEDED;
        LostError; GoneError when the client ends the connection or its sending side.
        """
        answers = self._answers
        self._to_enclave()
        while answers.pending is not None or not answers.complete:
            for descriptor, event in self._wait():
                if descriptor == self._client:
                    self._serve_client(event, spend)
                else:
                    self._serve_enclave(event)
        if answers.error is not None:
            raise answers.error

    def _wait(self) -> list[tuple[int, int]]:
        """Wait for either side to send what there is room for, or to take what waits for it."""
        questions, answers = self._questions, self._answers
        asks = questions.pending is None and not self._deaf
        self._watch(asks, answers.pending is None)
        until = self._until
        if asks and questions.within:
            until = min(until, questions.since + self._within_s)
        left = until - time.monotonic()
        if left <= 0:
            raise FrameError(Code.DEADLINE_EXCEEDED, "no end of the stream before the deadline")
        return self._poll.poll(left * 1000)

    def _watch(self, asks: bool, answers: bool) -> None:  # noqa: FBT001 - of each way alike
        """Look for what can go on: whether there is room for questions, and for answers."""
        if self._watched == (asks, answers):
            return
        self._watched = asks, answers
        self._poll = poll = select.poll()
        client = select.POLLIN * asks | select.POLLOUT * (not answers)
        poll.register(self._client, select.POLLRDHUP | client)
        asked = self._questions.pending is not None
        enclave = select.POLLIN * answers | select.POLLOUT * asked
        if enclave:  # else its hang-up would be told for as long as nothing is read from it
            poll.register(self._enclave, enclave)

    def _serve_client(self, event: int, spend: Callable[[int], None]) -> None:
        if event & _GONE:
            raise GoneError
        if event & select.POLLOUT:
            self._to_client()
        if event & select.POLLIN:
            before = self._questions.carried
            try:
                self._questions.read()
            except OSError:
                raise GoneError from None
            spend(self._questions.carried - before)
            self._to_enclave()

    def _serve_enclave(self, event: int) -> None:
        questions, answers = self._questions, self._answers
        if questions.pending is not None and event & ~select.POLLIN:
            self._to_enclave()
            questions.since = time.monotonic()  # so long the client was kept waiting
        if answers.pending is None and event & _READABLE:
            try:
                answers.read()
            except (OSError, FrameError):
                raise LostError from None
            self._to_client()

    def _to_enclave(self) -> None:
        try:
            self._questions.send()
        except OSError:
            self._deaf = True
            self._watched = None
            self._questions.pending = None

    def _to_client(self) -> None:
        try:
            self._answers.send()
        except OSError:
            raise GoneError from None
