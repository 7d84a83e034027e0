"""The bytes of one framed connection, in few calls and each bounded in time (SPEC 9.6.3).

The socket blocks, so the time-outs are the kernel's: what is there is taken in one call, and only
what drips in is looked at in between.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from casemate import frames, limits
from casemate.errors import CasemateError, Code, FrameError
from casemate.framed import Kind
from casemate.frames import ANSWER, ERROR, HEAD_BYTES
from casemate_host.pipe import Pipe
from casemate_host.status import to_refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.framed import Offer

_HEAD: Final = struct.Struct(">IBI")
_TIMEVAL: Final = struct.Struct("@ll")
_READ: Final = 64 * limits.KIB
_JOINED: Final = 16 * limits.KIB  # shorter frames are joined: one buffer costs less than two
_FAREWELL_S: Final = 1.0  # for a peer to take the last word, before the connection is cut

_SCRATCH: Final = bytearray(_READ)  # where all threads put what nobody will look at


class GoneError(Exception):
    """The client has ended the connection, or its sending side."""


class FramedChannel:
    """Frames in and out over a connected socket; one thread reads, one sends."""

    def __init__(self, channel: socket.socket, within_s: float) -> None:
        """``within_s``: how long a client may take to send one frame, and to take one."""
        channel.settimeout(None)
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(limits.KEEPALIVE_S))
        self._channel = channel
        self._within_s = within_s
        self._pipe: Pipe | None = None
        self._piped_most = limits.PIPE_BYTES  # the largest payload that may fit into it
        self._waits_s = 0.0
        self._taken_s = min(limits.FRAMED_READ_S, within_s)
        self._set_timeout(socket.SO_SNDTIMEO, self._taken_s)

    @property
    def socket(self) -> socket.socket:
        """What it reads and writes."""
        return self._channel

    def greet(self, offer: Offer) -> None:
        """Say the host's hello; raises OSError."""
        self._channel.sendall(offer.greeting)

    def hello(self) -> str:
        """Return what the client's hello says of it; raises CasemateError, GoneError, OSError."""
        until = time.monotonic() + limits.FRAMED_HELLO_S
        self._wait_at_most(limits.FRAMED_HELLO_S)
        head = self._exactly(HEAD_BYTES, until)
        length, kind, _ = frames.parse_head(head)
        size = length - frames.COUNTED
        if kind != Kind.HELLO:
            raise CasemateError(Code.MALFORMED, "a connection begins with a hello")
        if size > limits.FRAMED_HELLO_MAX:
            raise CasemateError(Code.TOO_LARGE, f"a hello of {size} bytes")
        return self._exactly(size, until).decode("latin-1") if size else ""

    def head(self, idle_s: float) -> tuple[int, int, int]:
        """Wait for a frame; return its payload's size, its type and budget in milliseconds.

        Raises FrameError for a length out of bounds, TimeoutError after ``idle_s`` seconds without
        a byte, GoneError, OSError.
        """
        begun = time.monotonic()
        self._wait_at_most(min(idle_s, self._within_s))
        while (data := self._begun(HEAD_BYTES)) is None:
            if time.monotonic() - begun >= idle_s:
                raise TimeoutError
        if len(data) < HEAD_BYTES:
            if not data:
                raise GoneError
            until = time.monotonic() + self._within_s
            data += self._exactly(HEAD_BYTES - len(data), until)
        length, kind, budget = frames.parse_head(data)
        return length - frames.COUNTED, kind, budget

    def payload(self, size: int) -> bytes:
        """Return a frame's payload; raises FrameError(DEADLINE_EXCEEDED), GoneError, OSError."""
        until = time.monotonic() + self._within_s
        return self._completed(self._receive(size), size, until)

    def message(self, size: int) -> bytes | Pipe:
        """Return ``payload``, in a pipe if it is large and fits: until the next is asked for."""
        if not limits.NUMBERED_MAX < size <= self._piped_most:
            return self.payload(size)
        until = time.monotonic() + self._within_s
        data = self._piped(size, until)
        return data if isinstance(data, Pipe) else self._completed(data, size, until)

    def _completed(self, data: bytes, size: int, until: float) -> bytes:
        return data if len(data) == size else data + self._exactly(size - len(data), until)

    def discard(self, size: int) -> None:
        """Read ``size`` bytes and keep none of them; raises as ``payload``."""
        until = time.monotonic() + self._within_s
        while size:
            left = until - time.monotonic()
            if left <= 0:
                raise _late()
            self._wait_at_most(left)
            try:
                got = self._channel.recv_into(_SCRATCH, min(size, _READ), socket.MSG_WAITALL)
            except BlockingIOError:
                continue
            if not got:
                raise GoneError
            size -= got

    def messages(self, kind: Kind, most: int) -> Iterator[bytes]:
        """Yield the payloads of frames of ``kind``, ``most`` bytes each, until the client's end.

        Raises FrameError for any other frame.
        """
        while (data := self._begun(_READ)) != b"":
            if data is not None:
                yield from self._whole(data, kind, most)

    def _whole(self, data: bytes, kind: Kind, most: int) -> Iterator[bytes]:
        """Yield the payloads of the frames in ``data``, the last one completed."""
        at = 0
        while at < len(data):
            if len(data) - at < HEAD_BYTES:
                data, at = data[at:], 0
                data += self._awaited(HEAD_BYTES - len(data))
            length, given, _ = frames.parse_head(data[at : at + HEAD_BYTES])
            if given != kind:
                raise FrameError(Code.MALFORMED, f"a frame of type {given} within a stream")
            if length - frames.COUNTED > most:
                raise FrameError(Code.TOO_LARGE, f"a message of {length - frames.COUNTED} bytes")
            start, at = at + HEAD_BYTES, at + HEAD_BYTES - frames.COUNTED + length
            payload = data[start:at]
            if at > len(data):
                payload += self._awaited(at - len(data))
            yield payload

    def _awaited(self, size: int) -> bytes:
        return self._exactly(size, time.monotonic() + self._within_s)

    def send(self, kind: int, payload: bytes) -> None:
        """Send a frame; raises OSError, TimeoutError from a client that does not take it."""
        self.finish(self.begin(kind, payload))

    def begin(self, kind: int, payload: bytes) -> memoryview | None:
        """Send as much of a frame as is taken at once; return what is left. Raises OSError."""
        head = _HEAD.pack(frames.COUNTED + len(payload), kind, 0)
        try:
            if len(payload) <= _JOINED:
                head += payload
                payload = b""
                sent = self._channel.send(head, socket.MSG_DONTWAIT)
            else:
                sent = self._channel.sendmsg((head, payload), (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent == len(head) + len(payload):
            return None
        if sent < len(head):
            return memoryview(head + payload)[sent:]
        return memoryview(payload)[sent - len(head) :]

    def finish(self, rest: memoryview | None) -> None:
        """Send what ``begin`` left; raises as ``send``."""
        if rest is None:
            return
        until = time.monotonic() + self._taken_s
        while rest:
            try:
                rest = rest[self._channel.send(rest) :]
            except BlockingIOError:
                raise TimeoutError("the client takes no answers") from None
            if rest and time.monotonic() >= until:
                raise TimeoutError("the client takes no answers")

    def refuse(self, error: CasemateError) -> None:
        """Answer with ``error``; raises OSError."""
        self.send(ERROR, to_refusal(error).SerializeToString())

    def welcome(self) -> None:
        """Answer the client's hello; raises OSError."""
        self.send(Kind.HELLO | ANSWER, b"")

    def farewell(self, error: CasemateError) -> None:
        """Say why this side ends the connection; never blocks, never raises.

        A client that finds it in the place of an answer knows that its request was not read.
        """
        with contextlib.suppress(OSError):
            self.begin(ERROR, to_refusal(error).SerializeToString())
            self._channel.shutdown(socket.SHUT_WR)

    def linger(self) -> None:
        """Let the client take the last word: drop what it sends until it ends, for a moment.

        A connection closed with bytes unread is reset, and may take that word with it.
        """
        until = time.monotonic() + _FAREWELL_S
        with contextlib.suppress(OSError):
            self._wait_at_most(_FAREWELL_S)
            while self._channel.recv(_READ) and time.monotonic() < until:
                pass

    def shut(self) -> None:
        """End both directions at once, whoever reads or sends."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()
        self._close_pipe()

    def _begun(self, size: int) -> bytes | None:
        """Return what is there, b"" at the client's end; None if nothing came for a while."""
        try:
            return self._channel.recv(size)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def _piped(self, size: int, until: float) -> Pipe | bytes:
        """Return the next ``size`` bytes in a pipe, or those that came if it has not got them."""
        if self._pipe is None or len(self._pipe):  # with a request that nobody took
            self._close_pipe()
            try:
                self._pipe = Pipe.open()
            except OSError:
                self._piped_most = 0
                return b""
        if self._pipe.fill(self._channel, size, until):
            return self._pipe
        self._piped_most = len(self._pipe)
        return self._pipe.drain()

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def _receive(self, size: int) -> bytes:
        """Return the next ``size`` bytes; fewer if they do not come within the time allowed."""
        try:
            return self._channel.recv(size, socket.MSG_WAITALL)
        except BlockingIOError:
            return b""

    def _exactly(self, size: int, until: float) -> bytes:
        """Return the next ``size`` bytes, however they drip in; raises as ``payload``."""
        pieces: list[bytes] = []
        while size:
            left = until - time.monotonic()
            if left <= 0:
                raise _late()
            self._wait_at_most(min(left, self._within_s))
            try:
                piece = self._channel.recv(size, socket.MSG_WAITALL)
            except BlockingIOError:
                continue
            if not piece:
                raise GoneError
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _wait_at_most(self, seconds: float) -> None:
        if seconds != self._waits_s:
            self._waits_s = seconds
            self._set_timeout(socket.SO_RCVTIMEO, seconds)

    def _set_timeout(self, option: int, seconds: float) -> None:
        value = _TIMEVAL.pack(*divmod(max(1, int(seconds * 1_000_000)), 1_000_000))
        self._channel.setsockopt(socket.SOL_SOCKET, option, value)


def _late() -> FrameError:
    return FrameError(Code.DEADLINE_EXCEEDED, "the message takes too long")
