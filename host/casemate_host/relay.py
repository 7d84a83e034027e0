"""Opaque relay: small messages share a connection to the enclave, others have one each (SPEC 9.1).

Promise: a frame that the enclave may have received whole is never sent again. What is sent a second
time was refused by the kernel on a connection that had died while it was idle.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final

from casemate import frames, limits
from casemate.channel import connect
from casemate.errors import CasemateError, Code, FrameError
from casemate_host.pipe import Pipe
from casemate_host.places import Places
from casemate_host.posting import PostingConnection
from casemate_host.shared import UnsentError
from casemate_host.transfer import Answer, Connection

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from casemate.channel import Address
    from casemate.numbered import Numbered
    from casemate.wire import Buffer
    from casemate_host.call import Call
    from casemate_host.posting import Posted

_CONNECT_S: Final = 2.0
_EARLY_ANSWER_S: Final = 0.5
_GRACE_S: Final = 0.5  # the enclave ends what exceeds its budget itself; this is for its answer


class _NotSentError(Exception):
    """The kernel did not take the whole frame: the enclave cannot have executed it."""


class Relay:
    """Exchanges frames with the enclave at ``address`` over at most ``capacity`` connections."""

    def __init__(self, address: Address, capacity: int, lost: Callable[[], None]) -> None:
        """``lost`` is called whenever a connection turns out to be dead; it must not block."""
        self._address = address
        self._places = Places(capacity)
        self._lost = lost
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False
        self._sharing = threading.Lock()
        self._shared: PostingConnection | None = None

    @property
    def busy(self) -> int:
        """Exchanges under way."""
        return self._places.busy

    @property
    def waiting(self) -> int:
        """Calls that wait for a connection."""
        return self._places.waiting

    def exchange(self, kind: frames.FrameType, payload: Buffer | Pipe, call: Call) -> bytes:
        """Send one frame and return its answer's payload.

        What a pipe still holds afterwards was not sent.
        Raises FrameError: the enclave's own error, DEADLINE_EXCEEDED, or UNAVAILABLE; after
        UNAVAILABLE the request may have been executed.
        """
        try:
            return self._exchange(kind, payload, call)
        except FrameError as error:
            if error.code is Code.UNAVAILABLE:
                self._lost()
            raise

    def post(self, posts: Sequence[Posted], call: Call) -> None:
        """Ask small requests that no thread waits for, over the shared connection.

        Raises FrameError (UNAVAILABLE, DEADLINE_EXCEEDED) if none was asked.
        """
        while True:
            try:
                shared, fresh = self._share(call)
            except FrameError:
                self._lost()
                raise
            try:
                return shared.post(posts)
            except UnsentError:
                if fresh:
                    self._lost()
                    detail = "the enclave closed the connection"
                    raise FrameError(Code.UNAVAILABLE, detail) from None

    def dial(self, call: Call) -> Connection:
        """Return a connection of its own for a stream, beside the pool; raises FrameError."""
        if self._closed:
            raise FrameError(Code.UNAVAILABLE, "the host is stopping")
        return Connection(self._dial(call))

    def lost(self) -> None:
        """Note that a connection from ``dial`` turned out to be dead."""
        self._lost()

    def wake(self) -> None:
        """Let calls that wait for a connection notice that they were cancelled."""
        self._places.wake()

    def drop_idle(self) -> None:
        """Close the idle connections, as after the enclave went away."""
        with self._lock:
            idle, self._idle = self._idle, []
            shared, self._shared = self._shared, None
        if shared is not None:
            shared.retire()
        for connection in idle:
            connection.close()

    def tidy(self) -> None:
        """Close the connections that nobody needed for a while; each costs the enclave a thread."""
        with self._lock:
            old = [kept for kept in self._idle if kept.idle_s > limits.RELAY_IDLE_S]
            self._idle = [kept for kept in self._idle if kept not in old]
        for connection in old:
            connection.close()

    def close(self) -> None:
        """Refuse further exchanges and close what is idle; exchanges under way close their own."""
        with self._lock:
            self._closed = True
        self._places.close()
        self.drop_idle()

    def _exchange(self, kind: frames.FrameType, payload: Buffer | Pipe, call: Call) -> bytes:
        self._places.claim(call)
        kept: Connection | None = None
        try:
            small = kind is frames.FrameType.REQUEST and len(payload) <= limits.NUMBERED_MAX
            if small and not isinstance(payload, Pipe):
                return self._exchange_shared(kind, payload, call)
            connection = self._pooled()
            if connection is not None:
                with contextlib.suppress(_NotSentError):
                    answer = _attempt(connection, kind, payload, call)
                    kept = connection
                    return _payload(answer)
            connection = Connection(self._dial(call))
            try:
                answer = _attempt(connection, kind, payload, call)
            except _NotSentError:
                raise FrameError(Code.UNAVAILABLE, "the enclave closed the connection") from None
            kept = connection
            return _payload(answer)
        finally:
            self._release(kept)

    def _exchange_shared(self, kind: frames.FrameType, payload: Buffer, call: Call) -> bytes:
        """Exchange a small message over the connection that all of them share."""
        while True:
            shared, fresh = self._share(call)
            try:
                return _payload(shared.exchange(kind, payload, call))
            except UnsentError:
                if fresh:
                    detail = "the enclave closed the connection"
                    raise FrameError(Code.UNAVAILABLE, detail) from None

    def _share(self, call: Call) -> tuple[PostingConnection, bool]:
        """Return the shared connection, and whether it was made for this call."""
        shared = self._shared
        if shared is not None and not shared.over:
            return shared, False
        if not self._sharing.acquire(timeout=call.remaining_s()):
            raise FrameError(Code.DEADLINE_EXCEEDED, "no connection in time")
        try:
            shared = self._shared
            if shared is not None and not shared.over:
                return shared, False
            self._shared = PostingConnection(self._dial(call))
            return self._shared, True
        finally:
            self._sharing.release()

    def _dial(self, call: Call) -> socket.socket:
        timeout_s = min(_CONNECT_S, call.remaining_s())
        try:
            return connect(self._address, timeout_s)
        except FrameError as error:
            # The address is the operator's business, not the caller's.
            raise FrameError(error.code, "the enclave does not answer") from None

    def _release(self, connection: Connection | None) -> None:
        with self._lock:
            if connection is not None and not self._closed:
                self._idle.append(connection)
                connection = None
        self._places.release()
        if connection is not None:
            connection.close()

    def _pooled(self) -> Connection | None:
        """Return the idle connection used last that is still open."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()


def _attempt(
    connection: Connection, kind: frames.FrameType, payload: Buffer | Pipe, call: Call
) -> Answer:
    """Exchange one frame over ``connection``, which is closed unless an answer comes of it."""
    try:
        call.attach(connection.channel)
        budget_s = call.remaining_s()
        connection.set_timeout(budget_s + _GRACE_S)
        try:
            answer = _send(connection, kind, payload, int(budget_s * 1000) or 1)
            return answer or _receive(connection, kind, call)
        except BlockingIOError:
            raise FrameError(Code.DEADLINE_EXCEEDED, "no answer before the deadline") from None
        finally:
            call.detach()
    except BaseException:
        connection.close()
        raise


def _send(
    connection: Connection, kind: frames.FrameType, payload: Buffer | Pipe, budget_ms: int
) -> Answer | None:
    """Send the frame; the answer, if the enclave refused the frame before it was complete."""
    size = len(payload)
    try:
        connection.send(kind, payload, budget_ms)
    except BlockingIOError:
        raise
    except OSError:
        # An error of sendmsg means that bytes of this frame were never accepted.
        early = _early_answer(connection)
        if early is not None:
            return early
        if len(payload) < size:  # what a pipe has given away cannot be sent again
            raise FrameError(Code.UNAVAILABLE, "the enclave closed the connection") from None
        raise _NotSentError from None
    return None


def _early_answer(connection: Connection) -> Answer | None:
    with contextlib.suppress(OSError, CasemateError):
        connection.set_timeout(_EARLY_ANSWER_S)
        answer = connection.receive()
        if answer is not None and answer.type == frames.ERROR:
            return answer
    return None


def _receive(connection: Connection, kind: frames.FrameType, call: Call) -> Answer:
    try:
        answer = connection.receive()
    except BlockingIOError:
        raise
    except (OSError, FrameError):
        answer = None
    if answer is None:
        call.remaining_s()  # a cancelled call's socket was shut by us: the enclave is not to blame
        raise FrameError(Code.UNAVAILABLE, "the enclave went away before it answered")
    if answer.type not in {frames.ERROR, kind | frames.ANSWER}:
        raise FrameError(Code.INTERNAL, f"answer of type {answer.type} to a frame of type {kind}")
    return answer


def _payload(answer: Answer | Numbered) -> bytes:
    if answer.type == frames.ERROR:
        raise frames.remote_error(answer.payload)
    return answer.payload
