"""The connection of one stream: frames of type 4 in both directions (SPEC 9.3.2)."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import Code, FrameError
from casemate.frames import ANSWER, COUNTED, FrameType, receive_frame, send_frame

if TYPE_CHECKING:
    from casemate.wire import Buffer

_LIMIT: Final = COUNTED + limits.STREAM_MESSAGE_MAX
_GONE: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL | select.POLLRDHUP
_GRACE_S: Final = 1.0  # after the deadline, for saying that it has passed


class HungUpError(Exception):
    """The host ended the connection: nobody waits for the stream any more."""


class StreamLink:
    """One thread may receive while another sends."""

    def __init__(self, channel: socket.socket, deadline: float) -> None:
        """``deadline`` in seconds of ``time.monotonic``."""
        # Set once: both threads' time-out is that of the socket.
        channel.settimeout(max(deadline - time.monotonic(), 0) + _GRACE_S)
        self.channel = channel
        self._expired = False
        self._deadline = deadline
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN | select.POLLRDHUP)

    def receive(self) -> memoryview | None:
        """Return the next message of the question; None when the host says that it has all.

        Raises HungUpError, TimeoutError at the deadline, FrameError (UNAVAILABLE) when the stream
        has expired and for anything but the next frame of this stream.
        """
        if not self._poll.poll(max(self._deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError
        try:
            frame = receive_frame(self.channel, _LIMIT)
        except TimeoutError:
            raise
        except OSError:
            frame = None
        if frame is None:
            self._check_expired()
            raise HungUpError
        if frame.type != FrameType.STREAM:
            raise FrameError(Code.MALFORMED, "a frame that is not of this stream")
        return frame.payload or None

    def check(self) -> None:
        """Raise HungUpError if the host ended the connection, whatever it has sent before.

        Raises FrameError (UNAVAILABLE) when the stream has expired.
        """
        self._check_expired()
        if any(event & _GONE for _, event in self._poll.poll(0)):
            raise HungUpError

    def expire(self) -> None:
        """End the stream with an error that says so: the enclave's life is over (SPEC 9.7)."""
        self._expired = True
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_RD)  # whoever receives wakes

    def _check_expired(self) -> None:
        if self._expired:
            raise FrameError(Code.UNAVAILABLE, "the enclave's life is over")

    def send(self, message: tuple[Buffer, ...]) -> None:
        """Send one message of the answer; waits while the host takes nothing.

        Raises HungUpError, TimeoutError.
        """
        try:
            send_frame(self.channel, FrameType.STREAM | ANSWER, message)
        except TimeoutError:
            raise
        except OSError:
            raise HungUpError from None

    def finish(self) -> None:
        """Say that the answer is complete, and give the host a moment to hang up first.

        What it may have sent last is dropped: closed on unread bytes, a connection may lose its
        own last ones.
        """
        self.send(())
        until = time.monotonic() + _GRACE_S
        with contextlib.suppress(OSError):
            while self._poll.poll(max(until - time.monotonic(), 0) * 1000):
                if not self.channel.recv(limits.KIB * 64):
                    return

    def hang_up(self) -> None:
        """End the connection: whoever receives or sends stops."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
