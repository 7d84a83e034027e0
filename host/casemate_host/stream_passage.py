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
        self._held = self._block[:0]  # a head that is not whole yet
        self._left = 0  # bytes of the frame in hand that have not come
        self._ends = 0  # of frames, so far
        self.pending = memoryview(first)
        self.since = 0.0  # when the frame in hand began
        self.carried = 0  # bytes of payload, so far
        self.complete = False
        self.error: FrameError | None = None

    @property
    def within(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._left or self._held)

    @property
    def clear(self) -> bool:
        """Whether what the other side was given ends with a frame."""
        return not self.pending and not self._left

    def read(self) -> None:
        """Read what is there, when nothing is pending; raises OSError at the end, FrameError."""
        held, ends = len(self._held), self._ends
        began = not self.within
        if held:
            self._block[:held] = self._held
        try:
            got = self._source.recv_into(self._block[held:], 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not got:
            raise ConnectionResetError
        end = held + got
        at = self._walk(end)
        self.pending, self._held = self._block[:at], self._block[at:end]
        if self.within and (began or self._ends != ends):
            self.since = time.monotonic()

    def send(self) -> None:
        """Give away what the other side takes at once; raises OSError."""
        try:
            sent = self._sink.send(self.pending, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        self.pending = self.pending[sent:]

    def _walk(self, end: int) -> int:
        """Return where that ends which may be passed on of the block's first ``end`` bytes."""
        at = self._take(0, end)
        while end - at >= HEAD_BYTES and not self.complete:
            length, kind = _HEAD.unpack_from(self._block, at)
            size = length - COUNTED
            if kind != self._kind:
                self._other(kind, size, self._block[at + HEAD_BYTES : end])
                return at
            if not 0 <= size <= limits.STREAM_MESSAGE_MAX:
                code = Code.MALFORMED if size < 0 else Code.TOO_LARGE
                raise FrameError(code, f"a message of {size} bytes")
            if not size:
                self.complete = True
                return at + HEAD_BYTES * self._passes_end
            self._left = size
            at = self._take(at + HEAD_BYTES, end)
        return at

    def _take(self, at: int, end: int) -> int:
        """Go on within the frame in hand; return where it ends, or what has come of it."""
        taken = min(self._left, end - at)
        if taken:
            self._left -= taken
            self._ends += not self._left
            self.carried += taken
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
        self._masks = {self._client: 0, self._enclave: 0}

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
        while answers.pending or not answers.complete:
            for descriptor, event in self._wait():
                if descriptor == self._client:
                    self._serve_client(event, spend)
                else:
                    self._serve_enclave(event)
        if answers.error is not None:
            raise answers.error

    def _wait(self) -> list[tuple[int, int]]:
        """Wait for either side to send what there is room for, or to take what waits for it."""
        asked, answered = self._questions.pending, self._answers.pending
        asks = not asked and not self._deaf
        answers = not answered and not self._answers.complete
        self._watch(
            self._client, select.POLLRDHUP | select.POLLIN * asks | select.POLLOUT * bool(answered)
        )
        self._watch(self._enclave, select.POLLIN * answers | select.POLLOUT * bool(asked))
        until = self._until
        if asks and self._questions.within:
            until = min(until, self._questions.since + self._within_s)
        left = until - time.monotonic()
        if left <= 0:
            raise FrameError(Code.DEADLINE_EXCEEDED, "no end of the stream before the deadline")
        return self._poll.poll(left * 1000)

    def _watch(self, descriptor: int, mask: int) -> None:
        if self._masks[descriptor] == mask:
            return
        self._masks[descriptor] = mask
        if mask:
            self._poll.register(descriptor, mask)
        else:  # its hang-up would be told for as long as nothing is read from it
            self._poll.unregister(descriptor)

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
        if self._questions.pending and event & ~select.POLLIN:
            self._to_enclave()
            self._questions.since = time.monotonic()  # so long the client was kept waiting
        if self._masks[self._enclave] & select.POLLIN and event & _READABLE:
            try:
                self._answers.read()
            except (OSError, FrameError):
                raise LostError from None
            self._to_client()

    def _to_enclave(self) -> None:
        try:
            self._questions.send()
        except OSError:
            self._deaf = True
            self._questions.pending = self._questions.pending[:0]

    def _to_client(self) -> None:
        try:
            self._answers.send()
        except OSError:
            raise GoneError from None
