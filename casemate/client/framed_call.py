"""A stream of calls on a framed connection (SPEC 9.6.3): a `Carrier` without gRPC."""

from __future__ import annotations

import select
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final

import grpc

from casemate import frames, limits
from casemate.client.call_book import BrokenError, Failure
from casemate.client.carrier import Event, Kind
from casemate.client.framed import refusal_in
from casemate.client.framed_buffer import FrameBuffer
from casemate.client.framed_dial import NO_SIGNAL, Dial, NowhereError
from casemate.errors import Code
from casemate.framed import Kind as Type
from casemate.frames import ANSWER

if TYPE_CHECKING:
    from casemate.client.framed import FramedHost
    from casemate.wire import Buffer

_READ: Final = 64 * limits.KIB
_JOINED: Final = 16 * limits.KIB  # shorter frames are joined: one buffer costs less than two
_AT_ONCE: Final = int(getattr(socket, "MSG_DONTWAIT", 0) | NO_SIGNAL)
_MOST: Final = limits.MIB  # memory for a long message is taken as it arrives
# How late `poll` may return to a call whose time is up, or notice what another thread left unsent.
_LOOK_S: Final = 0.05
_TIMEVAL: Final = struct.pack("@ll", 0, int(_LOOK_S * 1e6))


class FramedEnd:
    """How the connection ended."""

    def __init__(self, failure: Failure) -> None:
        self._failure = failure

    def code(self) -> grpc.StatusCode:
        """Return what a call would have ended with."""
        return grpc.StatusCode.UNAVAILABLE

    def failure(self, target: str) -> Failure:
        """Return what becomes of a question that has no answer."""
        return self._failure._replace(detail=f"{target}: {self._failure.detail}")


class FramedCall:
    """One connection, made at the first `poll`, whose event stands for the host's first message.

    What the kernel does not take at once of a message is sent by `poll`.
    """

    def __init__(self, host: FramedHost, hello: bytes) -> None:
        """``hello``: the client's, a whole frame. Nothing is sent yet."""
        self.host = host
        self.over = False
        self._dial = Dial(host, hello)
        self._frames = FrameBuffer(Type.MANY | ANSWER)
        self._lock = threading.Lock()  # of what follows
        self._channel: socket.socket | None = None
        self._unsent: list[Buffer] = []

    def send(self, message: bytes) -> bool:
        """Send a message; return whether a part of it waits, so that its SENT comes."""
        head = frames.encode_head(Type.MANY, len(message))
        with self._lock:
            if self._channel is None:
                return False
            self._unsent = [head + message] if len(message) <= _JOINED else [head, message]
            return not self._flush(self._channel)

    def end_sending(self) -> None:
        """End the connection: on it nothing is answered after this side's end."""
        self._dial.cut()

    def cancel(self) -> None:
        """End the connection; its last event still comes."""
        self._dial.cut()

    def rouse(self) -> bool:
        """Do nothing: `poll` returns soon anyway."""
        return False

    def poll(self) -> Event:
        """Wait for the next event, for a moment; an exception ends the connection."""
        try:
            if self._channel is None:
                return self._begun(self._dial)
            if self._frames.begun and (event := self._arrived()) is not None:
                return event
            return self._wait(self._channel)
        except NowhereError as error:
            return self._end(f"no framed connection: {error}")
        except BrokenError as error:
            return self._end(f"the host broke the rules of a stream: {error}")
        except BaseException:
            self._close()
            raise

    def _begun(self, dial: Dial) -> Event:
        channel = dial.connect(limits.FRAMED_CONNECT_S)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
        with self._lock:
            self._channel = channel
        return Event(Kind.MESSAGE)

    def _arrived(self) -> Event | None:
        """Return the next message that is there."""
        frame = self._frames.take()
        if frame is None:
            return None
        refused, payload = frame
        return self._refused(payload) if refused else Event(Kind.MESSAGE, payload)

    def _wait(self, channel: socket.socket) -> Event:
        """Receive, or send what waits, whichever is possible first."""
        if not self._unsent:
            return self._receive(channel)
        poll = select.poll()
        poll.register(channel, select.POLLIN | select.POLLOUT)
        (_, ready), *_ = poll.poll(_LOOK_S * 1000) or [(0, 0)]
        if ready & select.POLLOUT:
            with self._lock:
                # Whoever sends may have finished meanwhile, and begun another message: no SENT.
                if self._unsent and self._flush(channel):
                    return Event(Kind.SENT)
        return self._receive(channel) if ready & ~select.POLLOUT else Event(Kind.OTHER)

    def _receive(self, channel: socket.socket) -> Event:
        try:
            if missing := self._frames.missing:
                data = channel.recv(min(missing, _MOST), socket.MSG_WAITALL)
            else:
                data = channel.recv(_READ)
        except BlockingIOError:
            return Event(Kind.OTHER)
        except OSError:
            data = b""
        if not data:
            return self._end("the host went away")
        self._frames.add(data)
        return self._arrived() or Event(Kind.OTHER)

    def _flush(self, channel: socket.socket) -> bool:
        """Send what the kernel takes, with the lock held; return whether nothing is left.

        That the host is gone `poll` tells.
        """
        try:
            sent = channel.sendmsg(self._unsent, (), _AT_ONCE)
        except BlockingIOError:
            return False
        except OSError:
            self._unsent = []
        else:
            self._unsent = frames.unsent(self._unsent, sent)
        return not self._unsent

    def _refused(self, payload: bytes) -> Event:
        self._close()
        return Event(Kind.ENDED, end=FramedEnd(refusal_in(payload)))

    def _end(self, detail: str) -> Event:
        self._close()
        return Event(Kind.ENDED, end=FramedEnd(Failure(Code.UNAVAILABLE, detail)))

    def _close(self) -> None:
        with self._lock:
            self.over = True
            self._channel, self._unsent = None, []
            self._dial.close()
