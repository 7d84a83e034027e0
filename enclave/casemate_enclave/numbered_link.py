"""The bytes of a connection with numbered frames: questions in, answers out (SPEC 9.2.1)."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from casemate import frames, limits, numbered
from casemate.frames import FrameType

if TYPE_CHECKING:
    from casemate.numbered import Numbered
    from casemate.wire import Buffer
    from casemate_enclave.context import RequestContext

_READ: Final = 64 * limits.KIB
_JOINED: Final = 16 * limits.KIB  # pieces below it are cheaper to join than to gather


class NumberedLink:
    """One thread may receive while others hand in answers and send."""

    def __init__(self, channel: socket.socket) -> None:
        """``channel`` becomes blocking, and is not closed."""
        channel.settimeout(None)
        self._channel = channel
        self._frames = numbered.FrameBuffer(FrameType.NUMBERED, numbered.QUESTION_MAX)
        self._sending = threading.Lock()
        self._ready: deque[tuple[tuple[Buffer, ...], RequestContext | None]] = deque()
        self._dropping = False

    def take(self) -> Numbered | None:
        """Return the next frame if it has arrived; raises FrameError for what is none."""
        return self._frames.take()

    def receive(self) -> Numbered | None:
        """Wait for the next frame, when what is ready has been sent; None when the host has ended.

        Raises FrameError, OSError; TimeoutError for a frame that does not arrive whole in time,
        counted from when it is waited for.
        """
        until = 0.0
        while (frame := self._frames.take()) is None:
            if self._ready:
                self.flush()
            if self._frames.begun:
                until = until or time.monotonic() + limits.FRAME_HEAD_TIMEOUT_S
                self._wait(select.POLLIN, until)
            data = self._channel.recv(_READ)
            if not data:
                return None
            self._frames.add(data)
        return frame

    def put(self, answer: tuple[Buffer, ...], context: RequestContext | None = None) -> None:
        """Hand in one answer's frame, to be sent with the next ``flush``.

        ``context`` is released when that is done.
        """
        self._ready.append((answer, context))
        if self._dropping:
            self.drop()

    def drop(self) -> None:
        """Send nothing more: nobody waits for it."""
        self._dropping = True
        with contextlib.suppress(IndexError):
            while True:
                _, context = self._ready.popleft()
                if context is not None:
                    context.release()

    def hang_up(self) -> None:
        """End the connection: whoever receives or sends stops."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def flush(self) -> None:
        """Send what is ready; raises OSError if the host does not take it in time."""
        if not self._ready:
            return
        with self._sending:
            try:
                while self._ready:
                    buffers, size, contexts = self._gather()
                    try:
                        self._send(buffers, size)
                    finally:
                        for context in contexts:
                            context.release()
            except OSError:  # a frame was cut: nothing may follow it, nobody need wait again
                self.drop()
                self.hang_up()
                raise

    def _gather(self) -> tuple[list[Buffer], int, list[RequestContext]]:
        """Take what is ready, as much as goes into one call, and its bytes."""
        small: list[Buffer] = []
        contexts: list[RequestContext] = []
        size = 0
        try:
            while size < _JOINED:
                pieces, context = self._ready.popleft()
                size += sum(map(len, pieces))
                small += pieces
                if context is not None:
                    contexts.append(context)
        except IndexError:  # nothing more, or another thread dropped it meanwhile
            pass
        return [b"".join(small)] if size < 2 * _JOINED else small, size, contexts

    def _send(self, buffers: list[Buffer], size: int) -> None:
        while buffers and not self._dropping:
            try:
                sent = self._channel.sendmsg(buffers, (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLOUT, time.monotonic() + limits.FRAME_HEAD_TIMEOUT_S)
                continue
            if sent == size:
                return
            buffers, size = frames.unsent(buffers, sent), size - sent

    def _wait(self, event: int, until: float) -> None:
        """Wait until the host sends or takes more; raises TimeoutError if it does not."""
        poll = select.poll()
        poll.register(self._channel, event)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError
