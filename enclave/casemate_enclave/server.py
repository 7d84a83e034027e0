"""Connections from the host: one thread each, bounded in number, time and memory (SPEC 9)."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from casemate import limits, numbered
from casemate.errors import CLEAR_CODES, CasemateError, Code, FrameError
from casemate.frames import (
    ANSWER,
    COUNTED,
    ERROR,
    FrameType,
    OversizedFrameError,
    encode_error,
    receive_frame,
    send_error,
    send_frame,
)
from casemate.hangups import HangUps, Watched
from casemate_enclave.context import RequestContext, Unsent
from casemate_enclave.crew import Crew
from casemate_enclave.dispatch import ConnectionEndError
from casemate_enclave.events import Counter, Event
from casemate_enclave.memory import fresh_memory
from casemate_enclave.soft_limit import SoftLimit
from casemate_enclave.stream_link import StreamLink
from casemate_enclave.turns import TurnConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.frames import Frame
    from casemate.wire import Buffer
    from casemate_enclave.dispatch import Dispatcher
    from casemate_enclave.events import Journal
    from casemate_enclave.runs import Steps
    from casemate_enclave.soft_limit import Place

_ACCEPT_PAUSE_S = 0.1  # out of file descriptors: connections end, so wait for one to do so

# What may be said in the clear: to a request (SPEC 11.1), to a load (8.3), to an unload.
_OUTSIDE = CLEAR_CODES | {
    *(Code.MODEL_MALFORMED, Code.MODEL_PUBLISHER_UNKNOWN, Code.MODEL_SIGNATURE_INVALID),
    *(Code.MODEL_VERSION_REVOKED, Code.MODEL_OPEN_FAILED, Code.MODEL_REJECTED),
    Code.UNKNOWN_MODEL,
}


class _Exchange(NamedTuple):
    """One received frame on its connection; an ``Exchange`` of the dispatcher."""

    payload: memoryview
    deadline: float
    channel: socket.socket
    hang_ups: HangUps
    context: RequestContext
    begin: Callable[[StreamLink], None]

    def watched(self) -> Watched:
        return self.hang_ups.watching(self.channel, self.context)

    def model_data(self, size: int) -> Iterator[memoryview]:
        left = size
        while left:
            frame = self._next(min(left, limits.MODEL_DATA_MAX))
            left -= len(frame.payload)
            yield frame.payload

    def link(self) -> StreamLink:
        link = StreamLink(self.channel, self.deadline)
        self.begin(link)
        return link

    def _next(self, most: int) -> Frame:
        within_s = limits.FRAME_HEAD_TIMEOUT_S
        try:
            frame = receive_frame(
                *(self.channel, COUNTED + most),
                idle_s=within_s,
                within_s=within_s,
                memory=fresh_memory,
            )
        except FrameError as error:
            raise ConnectionEndError(error.code, error.detail) from None
        except OSError:
            frame = None
        if frame is None or frame.type != FrameType.MODEL_DATA or not frame.payload:
            raise ConnectionEndError(Code.MALFORMED, "the model's data ended early")
        return frame


class _Turn:
    """What a frame with a connection of its own waits for before it is received, if it is large."""

    def __init__(self, large: SoftLimit) -> None:
        self._large = large
        self._place: Place | None = None
        self.waited_s = 0.0

    def begun(self, size: int) -> None:
        """Wait for a place."""
        if size > limits.NUMBERED_MAX:
            arrived = time.monotonic()
            self._place = self._large.enter()
            self.waited_s = time.monotonic() - arrived

    def over(self) -> None:
        """Give it back."""
        if self._place is not None:
            self._large.leave(self._place)


class Server:
    """Accepts connections and answers their frames until it is stopped.

    A connection's failure ends that connection and nothing else. Over vsock only the context id
    ``parent`` is served (SPEC 9.1).
    """

    def __init__(
        self,
        listener: socket.socket,
        dispatcher: Dispatcher,
        journal: Journal,
        parent: int | None = None,
    ) -> None:
        self._listener = listener
        self._parent = parent
        self._dispatcher = dispatcher
        self._journal = journal
        self._crew = Crew()
        self._hang_ups = HangUps()
        self._hang_ups.start()
        self._unsent = Unsent()
        most = max(limits.LARGE_AT_ONCE_LEAST, len(os.sched_getaffinity(0)))
        self._large = SoftLimit(most, limits.LARGE_HOLD_S)
        self._changed = threading.Condition()
        self._connections: set[socket.socket] = set()
        self._links: dict[socket.socket, StreamLink] = {}
        self._stopping = False
        self._grace_s = 0.0

    def serve(self) -> None:
        """Accept until ``end``, ``finish`` or ``stop``."""
        arrivals = select.poll()  # wakes when the listener is hung up; `accept` does not
        arrivals.register(self._listener, select.POLLIN)
        with self._listener:
            self._listener.setblocking(False)
            while not self._stopping:
                if not arrivals.poll(limits.LIFE_LOOK_S * 1000):  # to notice that it is to end
                    continue
                try:
                    channel, peer = self._listener.accept()
                except BlockingIOError:
                    continue
                except OSError:
                    if not self._stopping:
                        time.sleep(_ACCEPT_PAUSE_S)
                    continue
                self._admit(channel, peer)

    def end(self) -> None:
        """Let ``serve`` return; takes no lock, so that a signal's handler may call it."""
        self._stopping = True
        _hang_up(self._listener)

    def finish(self) -> None:
        """Let ``serve`` return, and ``stop`` answer what is under way before it ends the rest."""
        self._grace_s = limits.FINISH_TIMEOUT_S
        self.end()

    def stop(self) -> None:
        """Take no more connections, end the present ones and wait a little for them."""
        self.end()
        self._hang_ups.stop()
        with self._changed:
            if self._grace_s:
                for channel in self._connections - self._links.keys():
                    _hang_up(channel, socket.SHUT_RD)
                self._changed.wait_for(lambda: not self._connections, self._grace_s)
            for link in self._links.values():
                link.expire()
            self._changed.wait_for(lambda: not self._links, limits.STREAM_END_S)
            for channel in self._connections:
                _hang_up(channel)
            self._changed.wait_for(lambda: not self._connections, limits.STOP_TIMEOUT_S)

    def _begin_stream(self, link: StreamLink) -> None:
        with self._changed:
            self._links[link.channel] = link
            if self._stopping:  # its connection was not spared: it began too late
                link.expire()

    def _admit(self, channel: socket.socket, peer: object) -> None:
        channel.settimeout(limits.FRAME_HEAD_TIMEOUT_S)
        if channel.family != socket.AF_UNIX and not self._is_parent(peer):
            self._refuse(channel, Code.UNAVAILABLE, "only the parent is served")
            return
        with self._changed:
            full = len(self._connections) >= limits.CONNECTIONS_MAX
            if not full:
                self._connections.add(channel)
        if full:
            self._refuse(channel, Code.OVERLOADED, "too many connections")
            return
        self._journal.count(Counter.CONNECTIONS_ACCEPTED)
        try:
            threading.Thread(
                target=self._serve, args=(channel,), name="connection", daemon=True
            ).start()
        except RuntimeError:  # no thread to be had
            self._forget(channel)
            self._refuse(channel, Code.OVERLOADED, "too many connections")

    def _is_parent(self, peer: object) -> bool:
        return isinstance(peer, tuple) and self._parent is not None and peer[0] == self._parent

    def _refuse(self, channel: socket.socket, code: Code, detail: str) -> None:
        self._journal.count(Counter.CONNECTIONS_REFUSED)
        self._journal.emit(Event.CONNECTION_REFUSED, code=code)
        with channel, contextlib.suppress(OSError):
            channel.settimeout(0)  # never wait here: an error fits any socket's buffer
            send_error(channel, code, detail)

    def _serve(self, channel: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):  # the peer is gone, or too slow
                while not self._stopping and self._exchange(channel):
                    pass
        finally:
            self._forget(channel)
            channel.close()

    def _forget(self, channel: socket.socket) -> None:
        with self._changed:
            self._connections.discard(channel)
            self._links.pop(channel, None)
            self._changed.notify_all()

    def _exchange(self, channel: socket.socket) -> bool:
        """Answer one frame; False when the connection is over."""
        turn = _Turn(self._large)
        try:
            return self._exchange_in(turn, channel)
        finally:
            turn.over()

    def _exchange_in(self, turn: _Turn, channel: socket.socket) -> bool:
        try:
            frame = receive_frame(
                channel,
                lambda: self._dispatcher.frame_limit,
                within_s=limits.FRAME_HEAD_TIMEOUT_S,
                memory=fresh_memory,
                begun=turn.begun,
            )
        except FrameError as error:
            self._send_error(channel, error)
            return isinstance(error, OversizedFrameError)
        if frame is None:
            return False
        if frame.type == FrameType.NUMBERED:
            self._take_turns(channel, frame)
            return False
        return self._answer(frame, channel, turn.waited_s)

    def _answer(self, frame: Frame, channel: socket.socket, waited_s: float) -> bool:
        exchange = self._exchange_of(frame, channel, waited_s)
        try:
            return self._answer_to(frame.type, exchange)
        finally:
            exchange.context.release()

    def _answer_to(self, kind: int, exchange: _Exchange) -> bool:
        channel = exchange.channel
        try:
            answer = self._dispatcher.answer(kind, exchange)
        except CasemateError as error:
            self._send_error(channel, error)
            return not isinstance(error, ConnectionEndError)
        except Exception:  # noqa: BLE001 - a fault of this code must not end the enclave, nor be quoted
            self._send_error(channel, self._internal())
            return False
        if answer is None:
            return False
        channel.settimeout(limits.FRAME_HEAD_TIMEOUT_S)
        send_frame(channel, kind | ANSWER, answer)
        return True

    def _take_turns(self, channel: socket.socket, first: Frame) -> None:
        """Answer numbered frames until the connection ends (SPEC 9.2.1)."""
        try:
            turns = TurnConnection(
                *(channel, self._numbered, self._crew),
                finishing=self._is_finishing,
                unsent=self._unsent,
            )
            turns.serve(numbered.first(first))
        except FrameError as error:
            self._send_error(channel, error)

    def _is_finishing(self) -> bool:
        return self._stopping and self._grace_s > 0

    def _numbered(
        self, kind: int, payload: memoryview, deadline: float, context: RequestContext
    ) -> Steps[tuple[int, tuple[Buffer, ...]]]:
        try:
            pieces = yield from self._dispatcher.numbered(kind, payload, deadline, context)
        except CasemateError as error:
            return ERROR, (self._refusal(error),)
        except Exception:  # noqa: BLE001 - as in _exchange
            return ERROR, (self._refusal(self._internal()),)
        return kind | ANSWER, pieces

    def _exchange_of(self, frame: Frame, channel: socket.socket, waited_s: float) -> _Exchange:
        budget = min(frame.budget, limits.FRAME_BUDGET_MAX)
        deadline = time.monotonic() + budget / 1000 - waited_s
        context = RequestContext(self._unsent)
        return _Exchange(
            *(frame.payload, deadline, channel, self._hang_ups, context, self._begin_stream)
        )

    def _internal(self) -> CasemateError:
        self._journal.count(Counter.INTERNAL_ERRORS)
        self._journal.emit(Event.INTERNAL_ERROR)
        return CasemateError(Code.INTERNAL, "internal error")

    def _send_error(self, channel: socket.socket, error: CasemateError) -> None:
        refusal = self._refusal(error)
        channel.settimeout(limits.FRAME_HEAD_TIMEOUT_S)
        send_frame(channel, ERROR, refusal)

    def _refusal(self, error: CasemateError) -> bytes:
        """Return an error answer's payload, which says no more than may be said in the clear."""
        self._journal.count(Counter.FRAMES_REFUSED)
        if error.code in _OUTSIDE:
            return encode_error(error.code, error.detail)
        return encode_error(Code.INTERNAL, "internal error")


def _hang_up(channel: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with contextlib.suppress(OSError):
        channel.shutdown(how)
