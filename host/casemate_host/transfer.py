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
from typing import TYPE_CHECKING, Final, NamedTuple

from casemate import frames, limits
from casemate.errors import Code, FrameError
from casemate_host.pipe import Pipe

if TYPE_CHECKING:
    from casemate.wire import Buffer

_TIMEVAL: Final = struct.Struct("@ll")
_SMALL: Final = 8192  # the smallest buckets of sealed answers
_FRESH_S: Final = 0.05


class Answer(NamedTuple):
    """One received frame of the enclave."""

    type: int
    payload: bytes


class Connection:
    """A connected socket, made blocking; one exchange at a time."""

    def __init__(self, channel: socket.socket) -> None:
        channel.settimeout(None)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.RELAY_SEND_BUFFER)
        self.channel = channel
        self._readable = select.poll()
        self._readable.register(channel, select.POLLIN)
        self._quarters = 0  # of a second, after which the kernel gives up
        self._large = False
        self._patience_s = 0.0
        self._used = time.monotonic()

    @property
    def idle_s(self) -> float:
        """How long ago it was last used, in seconds."""
        return time.monotonic() - self._used

    def close(self) -> None:
        """Close the socket."""
        self.channel.close()

    def set_timeout(self, timeout_s: float) -> None:
        """Bound each send and receive; what exceeds it is a BlockingIOError.

        Rounded up to quarters of a second: most exchanges find the bound of the last.
        """
        self._patience_s = timeout_s
        quarters = int(timeout_s * 4) + 1
        if quarters == self._quarters:
            return
        self._quarters = quarters
        value = _TIMEVAL.pack(quarters // 4, quarters % 4 * 250_000)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def is_quiet(self) -> bool:
        """Whether the connection is open and, as it must be between exchanges, silent.

        One used a moment ago is taken to be: looking costs a tenth of a small exchange, a send to
        a dead one fails, and an answer to another request opens for nobody.
        """
        if self.idle_s < _FRESH_S:
            return True
        return not self._readable.poll(0)

    def send(self, kind: int, payload: Buffer | Pipe, budget_ms: int) -> None:
        """Send one frame, and await the answer to a large one; what a pipe holds is moved.

        Raises OSError, BlockingIOError.
        """
        size = len(payload)
        if isinstance(payload, Pipe):
            self.channel.sendall(frames.encode_head(kind, size, budget_ms))
            payload.pour(self.channel)
        else:
            frames.send_frame(self.channel, kind, payload, budget_ms)
        # Whoever waits in ``recv`` is woken for each piece that the enclave has read of it.
        if size > limits.NUMBERED_MAX and not self._readable.poll(self._patience_s * 1000):
            raise BlockingIOError

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
        data = await_bytes(self.channel, size)
        if len(data) < size:
            raise FrameError(Code.MALFORMED, "connection closed within a frame")
        return data


def await_bytes(channel: socket.socket, size: int) -> bytes:
    """Return the next ``size`` bytes of a blocking socket, fewer only if its peer closed it.

    In one call, but for vsock: Linux refuses to wait for as much as the socket's buffer takes
    (ENOMEM; net/vmw_vsock/af_vsock.c, vsock_connectible_recvmsg).
    """
    most = limits.VSOCK_AWAITED if channel.family == socket.AF_VSOCK else size
    pieces: list[bytes] = []
    left = size
    while left and (piece := channel.recv(min(left, most), socket.MSG_WAITALL)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
