"""One stream on a framed connection of its own (SPEC 9.6.3), for threads."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from casemate import frames, limits
from casemate.client.call_book import BrokenError, Failure
from casemate.client.framed import refusal_in
from casemate.client.framed_buffer import FrameBuffer
from casemate.client.framed_dial import NO_SIGNAL, NowhereError, connecting_s, for_stream
from casemate.errors import Code
from casemate.framed import Kind
from casemate.frames import ANSWER, COUNTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.client.framed import FramedHost
    from casemate.client.framed_dial import Dial
    from casemate.client.steps import HostStream
    from casemate.wire import Buffer

    # Begins the stream by gRPC: its messages, and the seconds that it has.
    Otherwise: TypeAlias = Callable[[Iterator[bytes], float], HostStream]

_READ: Final = 64 * limits.KIB
_MOST: Final = limits.MIB  # memory for a long message is taken as it arrives
_JOINED: Final = 16 * limits.KIB  # shorter frames are joined: one buffer costs less than two
_TIMEVAL: Final = struct.Struct("@ll")


class Way(Protocol):
    """What a stream came by; told of it in any thread."""

    def led_nowhere(self, host: FramedHost) -> None:
        """Note that the host of the offer was not reached, or refused the hello."""
        ...

    def ended(self, stream: FramedStream) -> None:
        """Note that nothing of the stream is open any more."""
        ...


class FramedStream:
    """A stream under way; by gRPC after all if the offer leads nowhere.

    A thread of its own connects and sends. Whoever takes, one thread, keeps the deadline.
    """

    def __init__(self, dial: Dial, target: str, until: float, way: Way) -> None:
        """``until`` in seconds of time.monotonic. Nothing is sent before `begin`."""
        self._dial = dial
        self._target = target
        self._until = until
        self._way = way
        self._frames = FrameBuffer(Kind.STREAM | ANSWER, COUNTED + limits.STREAM_MESSAGE_MAX)
        self._begun = threading.Event()  # connected, or otherwise under way, or over
        self._channel: socket.socket | None = None
        self._otherwise: HostStream | None = None
        self._complete = False
        self._refused: Failure | None = None
        self._lock = threading.Lock()  # of what follows
        self._users = 2  # of the socket: who sends and who takes
        self._taking = False
        self._over = False

    def begin(self, messages: Iterator[bytes], otherwise: Otherwise) -> None:
        """Connect, then take ``messages`` and send each once the host has taken the last."""
        sender = threading.Thread(
            target=self._work, args=(messages, otherwise), name="framed-stream", daemon=True
        )
        try:
            sender.start()
        except RuntimeError:  # there is no thread to spare
            self._way.ended(self)
            raise

    def take(self) -> bytes | None:
        """Return what has come of the answer, None after the last; raises RequestError."""
        if not self._begun.is_set():
            self._await_beginning()
        if self._otherwise is not None:
            by_grpc: bytes | None = self._otherwise.take()
            return by_grpc
        channel = self._channel
        with self._lock:
            if self._over or channel is None:
                raise self._failure(Code.UNAVAILABLE, "the stream was cancelled").error()
            self._taking = True
        message = None
        try:
            message = self._next(channel)
        finally:
            self._taken(more=message is not None)
        return message

    def cancel(self) -> None:
        """End the stream: whoever sends or takes hears so."""
        with self._lock:
            first, self._over = not self._over, True
            self._dial.cut()
            self._begun.set()
            if first and not self._taking:
                self._leave()
        if self._otherwise is not None:
            self._otherwise.cancel()

    def _taken(self, *, more: bool) -> None:
        with self._lock:
            self._taking = False
            if not more or self._over:
                self._over = True
                self._dial.cut()
                self._leave()

    def _leave(self) -> None:
        """Have the last of the socket's users close it; with the lock held."""
        self._users -= 1
        if not self._users:
            self._dial.close()
            self._way.ended(self)

    # Sending

    def _work(self, messages: Iterator[bytes], otherwise: Otherwise) -> None:
        try:
            channel = self._connected()
            if channel is None:
                self._turn(messages, otherwise)
            else:
                self._send(channel, messages)
        except Exception:  # noqa: BLE001 - nothing more can be sent: whoever takes hears of it
            self._dial.cut()
        finally:
            self._begun.set()
            with self._lock:
                self._leave()

    def _connected(self) -> socket.socket | None:
        within_s = connecting_s(self._left())
        try:
            channel = self._dial.connect(within_s)
        except NowhereError as error:
            if error.tells(within_s) and not self._over:
                self._way.led_nowhere(self._dial.host)
            return None
        for_stream(channel)
        self._channel = channel
        self._begun.set()
        return channel

    def _turn(self, messages: Iterator[bytes], otherwise: Otherwise) -> None:
        """Have the stream go by gRPC; the host was asked nothing."""
        with self._lock:
            if not self._over:
                self._otherwise = otherwise(messages, self._left())

    def _send(self, channel: socket.socket, messages: Iterator[bytes]) -> None:
        budget = min(int(self._left() * 1000) or 1, limits.FRAME_BUDGET_MAX)
        for message in messages:
            _send_frame(channel, message, budget)
            budget = 0
        _send_frame(channel, b"", budget)

    # Taking

    def _await_beginning(self) -> None:
        if not self._begun.wait(max(0.0, self._left())):
            self.cancel()
            raise self._late().error()

    def _next(self, channel: socket.socket) -> bytes | None:
        try:
            while not (message := self._arrived()):
                if self._refused is not None:
                    raise self._refused.error()
                if self._complete:
                    return None
                self._receive(channel)
        except BlockingIOError:
            raise self._late().error() from None
        except BrokenError as error:
            detail = f"the host broke the rules of framed connections: {error}"
            raise self._failure(Code.UNAVAILABLE, detail).error() from None
        except OSError:
            raise self._failure(Code.UNAVAILABLE, "the host went away").error() from None
        return message

    def _arrived(self) -> bytes:
        """Return all of the answer that is there, joined (SPEC 9.3.2)."""
        messages = []
        while not self._complete and (frame := self._frames.take()) is not None:
            refused, payload = frame
            self._complete = refused or not payload
            if refused:
                self._refused = refusal_in(payload)
            else:
                messages.append(payload)
        return messages[0] if len(messages) == 1 else b"".join(messages)

    def _receive(self, channel: socket.socket) -> None:
        microseconds = int(self._left() * 1_000_000)
        if microseconds <= 0:
            raise BlockingIOError
        bound = _TIMEVAL.pack(*divmod(microseconds, 1_000_000))
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
        if missing := self._frames.missing:
            data = channel.recv(min(missing, _MOST), socket.MSG_WAITALL)
        else:
            data = channel.recv(_READ)
        if not data:
            raise ConnectionError
        self._frames.add(data)

    def _left(self) -> float:
        return self._until - time.monotonic()

    def _late(self) -> Failure:
        return self._failure(Code.DEADLINE_EXCEEDED, "no answer before the deadline")

    def _failure(self, code: Code, detail: str) -> Failure:
        return Failure(code, f"{self._target}: {detail}")


def _send_frame(channel: socket.socket, message: bytes, budget: int) -> None:
    head = frames.encode_head(Kind.STREAM, len(message), budget)
    left: list[Buffer] = [head + message] if len(message) <= _JOINED else [head, message]
    while left:
        left = frames.unsent(left, channel.sendmsg(left, (), NO_SIGNAL))
