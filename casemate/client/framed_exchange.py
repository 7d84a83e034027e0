"""A framed connection for one large request at a time (SPEC 9.6.3), in few calls into the kernel.

A request leaves by one call, as a rule, and its answer comes by two. Where it takes more of them,
the time-outs are the kernel's.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final

from casemate import frames, limits
from casemate.client.call_book import BrokenError, Failure
from casemate.client.framed import refusal_in
from casemate.client.framed_buffer import checked
from casemate.client.framed_dial import NO_SIGNAL, Dial, NowhereError
from casemate.errors import Code
from casemate.framed import Kind
from casemate.frames import ANSWER, COUNTED, HEAD_BYTES

if TYPE_CHECKING:
    from casemate.client.framed import FramedHost
    from casemate.errors import RequestError
    from casemate.wire import Buffer

_HEAD: Final = struct.Struct(">IB")
_TIMEVAL: Final = struct.Struct("@ll")
_AT_ONCE: Final = int(getattr(socket, "MSG_DONTWAIT", 0) | NO_SIGNAL)
_TICK_S: Final = 1e-6  # of the kernel's time-outs, of which none is for ever
_LONGEST_S: Final = 1e6  # poll(2) counts milliseconds in 31 bits, and no host waits for so long
_SMALL: Final = 8 * limits.KIB  # the smallest buckets of sealed answers


class UnsentError(Exception):
    """The connection was dead before a byte left."""


class Exchanges:
    """One connection; ``connect`` and ``exchange`` are for one thread at a time, `cut` for any."""

    def __init__(self, host: FramedHost, hello: bytes, target: str) -> None:
        """``hello``: the client's, a whole frame. Nothing is sent yet."""
        self.host = host
        self.usable = False
        self.used = 0.0  # time.monotonic
        self._target = target
        self._dial = Dial(host, hello)
        self._ready = {socket.SO_RCVTIMEO: select.poll(), socket.SO_SNDTIMEO: select.poll()}
        self._large = False

    def connect(self, within_s: float) -> str:
        """Reach the host; return its address. Raises NowhereError."""
        self._channel = self._dial.connect(within_s)
        try:
            address = str(self._channel.getpeername()[0])
        except OSError:  # it was reset after its welcome
            self.close()
            raise NowhereError("the host went away") from None
        self._ready[socket.SO_RCVTIMEO].register(self._channel, select.POLLIN)
        self._ready[socket.SO_SNDTIMEO].register(self._channel, select.POLLOUT)
        self.usable = True
        self.used = time.monotonic()
        return address

    @property
    def quiet(self) -> bool:
        """Whether the connection is open and, as it must be between exchanges, silent."""
        return not self._ready[socket.SO_RCVTIMEO].poll(0)

    def cut(self) -> None:
        """End the connection: whoever uses it hears so."""
        self._dial.cut()

    def close(self) -> None:
        """Close the socket."""
        self._dial.close()

    def exchange(self, request: Buffer, until: float) -> bytes:
        """Ask, and return the answer; ``until`` in seconds of time.monotonic.

        Raises UnsentError; RequestError: what the host says, DEADLINE_EXCEEDED, or UNAVAILABLE if
        it went away or broke a rule. Only after an answer or a refusal is the connection `usable`.
        """
        self.usable = False
        try:
            self._send(request, until)
            refused, payload = self._receive(until)
            failure = refusal_in(payload) if refused else None
        except BlockingIOError:
            raise self._error(Code.DEADLINE_EXCEEDED, "no answer before the deadline") from None
        except OSError:
            raise self._error(Code.UNAVAILABLE, "the host went away") from None
        except BrokenError as error:
            detail = f"the host broke the rules of framed connections: {error}"
            raise self._error(Code.UNAVAILABLE, detail) from None
        self.usable = True
        self.used = time.monotonic()
        if failure is not None:
            raise failure.error()
        return payload

    def _error(self, code: Code, detail: str) -> RequestError:
        return Failure(code, f"{self._target}: {detail}").error()

    def _send(self, request: Buffer, until: float) -> None:
        left = _left(until)
        budget = min(int(left * 1000) or 1, limits.FRAME_BUDGET_MAX)
        head = frames.encode_head(Kind.REQUEST, len(request), budget)
        buffers: list[Buffer] = [head, request]
        try:
            sent = self._channel.sendmsg(buffers, (), _AT_ONCE)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise UnsentError from None
        while buffers := frames.unsent(buffers, sent):
            self._bound(until, socket.SO_SNDTIMEO)
            sent = self._channel.sendmsg(buffers, (), NO_SIGNAL)

    def _receive(self, until: float) -> tuple[bool, bytes]:
        """Return whether the answer is a refusal, and its payload."""
        if not self._ready[socket.SO_RCVTIMEO].poll(_left(until) * 1000):
            raise BlockingIOError
        data = self._channel.recv(HEAD_BYTES if self._large else _SMALL, _AT_ONCE)
        if len(data) < HEAD_BYTES:
            data = self._more(data, HEAD_BYTES, until)
        length, kind = _HEAD.unpack_from(data)
        refused = checked(length, kind, Kind.REQUEST | ANSWER)
        size = length - COUNTED
        payload = data[HEAD_BYTES:]
        if len(payload) > size:
            raise BrokenError("more than one answer")
        if len(payload) < size:
            payload = self._more(payload, size, until)
        self._large = size > _SMALL - HEAD_BYTES
        return refused, payload

    def _more(self, data: bytes, size: int, until: float) -> bytes:
        """Return ``data`` and what follows, ``size`` bytes together."""
        pieces, left = [data] if data else [], size - len(data)
        while left:
            self._bound(until, socket.SO_RCVTIMEO)
            piece = self._channel.recv(left, socket.MSG_WAITALL)
            if not piece:
                raise ConnectionError
            pieces.append(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _bound(self, until: float, option: int) -> None:
        """Bound the next call by the time that is left; raises BlockingIOError."""
        left = _left(until)
        value = _TIMEVAL.pack(*divmod(int(left * 1_000_000), 1_000_000))
        self._channel.setsockopt(socket.SOL_SOCKET, option, value)
        # The main thread's signals have the kernel's time begin anew, but not this one.
        signalled = threading.current_thread() is threading.main_thread()
        if signalled and not self._ready[option].poll(left * 1000):
            raise BlockingIOError


def _left(until: float) -> float:
    """Return how many seconds to wait at most; raises BlockingIOError if none is left."""
    left = until - time.monotonic()
    if left < _TICK_S:
        raise BlockingIOError
    return min(left, _LONGEST_S)
