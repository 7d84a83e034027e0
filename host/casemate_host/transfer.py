"""Connections to the enclave, and how answers come in over them: in few calls and without copies.

Each call into the kernel gives up the interpreter's lock, which many workers wait for: small
answers take one call. Large ones take two, the second filling the ``bytes`` that gRPC is given; a
buffer copied afterwards costs, at 600 KiB, most of the relay's time in page faults. Both need
blocking sockets, so the time-outs are the kernel's.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from casemate import frames
from casemate.errors import Code, FrameError

_TIMEVAL: Final = struct.Struct("@ll")
_SMALL: Final = 8192  # the smallest buckets of sealed answers
_FRESH_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    """One received frame of the enclave."""

    type: int
    payload: bytes


class Connection:
    """A connected socket, made blocking; one exchange at a time."""

    def __init__(self, channel: socket.socket) -> None:
        channel.settimeout(None)
        self.channel = channel
        self._large = False
        self._used = time.monotonic()

    @property
    def idle_s(self) -> float:
        """How long ago it was last used, in seconds."""
        return time.monotonic() - self._used

    def close(self) -> None:
        """Close the socket."""
        self.channel.close()

    def set_timeout(self, timeout_s: float) -> None:
        """Bound each send and receive; what exceeds it is a BlockingIOError."""
        microseconds = max(1, int(timeout_s * 1_000_000))
        value = _TIMEVAL.pack(*divmod(microseconds, 1_000_000))
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def is_quiet(self) -> bool:
        """Whether the connection is open and, as it must be between exchanges, silent.

        One used a moment ago is taken to be: looking costs a tenth of a small exchange, a send to
        a dead one fails, and an answer to another request opens for nobody.
        """
        if self.idle_s < _FRESH_S:
            return True
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return not poll.poll(0)

    def receive(self) -> Answer | None:
        """Receive one frame; None when the peer closed before it.

        Raises FrameError: MALFORMED for a bad or cut frame or if more than one came, TOO_LARGE
        above the bound, before memory is taken; BlockingIOError after the time-out; other
        OSErrors pass through.
        """
        head = self.channel.recv(frames.HEAD_BYTES if self._large else _SMALL)
        if not head:
            return None
        if len(head) < frames.HEAD_BYTES:
            head += self._exactly(frames.HEAD_BYTES - len(head))
        length, kind, _ = frames.parse_head(head[: frames.HEAD_BYTES])
        payload, left = head[frames.HEAD_BYTES :], length - frames.COUNTED
        left -= len(payload)
        if left < 0:
            raise FrameError(Code.MALFORMED, "more than one answer")
        if left:
            rest = self._exactly(left)
            payload = payload + rest if payload else rest
        self._large = len(payload) > _SMALL - frames.HEAD_BYTES
        self._used = time.monotonic()
        return Answer(kind, payload)

    def _exactly(self, size: int) -> bytes:
        data = self.channel.recv(size, socket.MSG_WAITALL)
        if len(data) == size:
            return data
        pieces = [data]
        left = size - len(data)
        while pieces[-1] and left:
            pieces.append(self.channel.recv(left, socket.MSG_WAITALL))
            left -= len(pieces[-1])
        if left:
            raise FrameError(Code.MALFORMED, "connection closed within a frame")
        return b"".join(pieces)
