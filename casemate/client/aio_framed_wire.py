"""Frames on a socket of an event loop (SPEC 9.2, 9.6.3): sent at once, and heard as they come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final, Protocol

from casemate import frames, limits
from casemate.client.call_book import BrokenError
from casemate.client.framed_buffer import FrameBuffer
from casemate.client.framed_dial import NO_SIGNAL
from casemate.frames import ANSWER, COUNTED

if TYPE_CHECKING:
    from casemate.framed import Kind
    from casemate.wire import Buffer

_AT_ONCE: Final = 64 * limits.KIB  # taken at a time, or more of a frame that is known to be longer
_AT_MOST: Final = limits.MIB


class Listener(Protocol):
    """Whoever a connection is for; called by the loop, or while it sends."""

    def heard(self, payload: bytes, *, refused: bool) -> None:
        """Take the payload of an answer, or of a refusal; raises BrokenError."""
        ...

    def drained(self) -> None:
        """Note that all was sent."""
        ...

    def lost(self, why: str) -> None:
        """Note that the connection is over; once, unless this side closed it."""
        ...


class Wire:
    """A connection that was greeted: frames of one kind go out, and their answers come."""

    def __init__(
        self,
        sock: socket.socket,
        kind: Kind,
        listener: Listener,
        most: int = limits.FRAME_MAX - COUNTED,
    ) -> None:
        """Take over ``sock``, which does not block; ``most``: bytes of an answer's payload."""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._listener = listener
        self._kind = kind
        self._arrived = FrameBuffer(kind | ANSWER, COUNTED + most)
        self._rest: list[Buffer] = []
        self.over = False
        self._paused = False
        self._loop.add_reader(sock, self._readable)

    @property
    def sending(self) -> bool:
        """Whether the host has yet to take what was sent: nothing more may be sent meanwhile."""
        return bool(self._rest)

    def send(self, payload: Buffer, budget: int = 0) -> bool:
        """Send a frame, without copying it; False if the connection is over and no byte left."""
        pieces: list[Buffer] = [frames.encode_head(self._kind, len(payload), budget), payload]
        try:
            sent = self._sock.sendmsg(pieces, (), NO_SIGNAL)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._lose(_named(error))
            return False
        self._rest = frames.unsent(pieces, sent)
        if self._rest:
            self._loop.add_writer(self._sock, self._writable)
        return True

    def pause(self) -> None:
        """Hear nothing more than what has arrived, until `resume`."""
        if not (self._paused or self.over):
            self._paused = True
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Hear again."""
        if self._paused and not self.over:
            self._paused = False
            self._loop.add_reader(self._sock, self._readable)

    @property
    def quiet(self) -> bool:
        """Whether the connection is open and silent, whatever the loop has said so far."""
        if self.over:
            return False
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """End the connection; nothing more is heard."""
        if self.over:
            return
        self.over = True
        self._rest = []
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # a forked process may hold it too
        self._sock.close()

    def _lose(self, why: str) -> None:
        if not self.over:
            self.close()
            self._listener.lost(why)

    def _writable(self) -> None:
        try:
            self._rest = frames.unsent(self._rest, self._sock.sendmsg(self._rest, (), NO_SIGNAL))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(_named(error))
            return
        if not self._rest:
            self._loop.remove_writer(self._sock)
            self._listener.drained()

    def _readable(self) -> None:
        try:
            self._receive()
        except (BlockingIOError, InterruptedError):
            return
        except BrokenError as error:
            self._lose(f"the host broke the rules of framed connections: {error}")
        except OSError as error:
            self._lose(_named(error))

    def _receive(self) -> None:
        data = self._sock.recv(max(_AT_ONCE, min(_AT_MOST, self._arrived.missing)))
        if not data:
            self._lose("the host ended the connection")
            return
        self._arrived.add(data)
        while not self.over and (frame := self._arrived.take()) is not None:
            refused, payload = frame
            self._listener.heard(payload, refused=refused)

    def __del__(self) -> None:
        self._sock.close()  # of a loop that was closed before the client


def _named(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__
