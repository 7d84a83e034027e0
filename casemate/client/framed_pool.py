"""The framed connections of one client that carry one request at a time (SPEC 9.6.3).

For large requests, and for a small one that comes alone.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

from casemate import limits
from casemate.client.framed_dial import NowhereError
from casemate.client.framed_exchange import Exchanges, UnsentError
from casemate.errors import Code, RequestError
from casemate.frames import COUNTED

if TYPE_CHECKING:
    from casemate.client.framed import FramedHost
    from casemate.wire import Buffer


class FramedPool:
    """Connections to the host that made the last offer, made when they are needed; thread-safe.

    No call waits for a connection at an address where none was made before: a thread of its own
    makes the first. Where there is none, the call is to be made by gRPC.
    """

    def __init__(self, hello: bytes, target: str) -> None:
        """``hello``: the client's, a whole frame. Nothing is offered yet."""
        self._host: FramedHost | None = None
        self._hello = hello
        self._target = target
        self._lock = threading.Lock()
        self._all: set[Exchanges] = set()
        self._idle: list[Exchanges] = []  # the last used one last
        self._reached: FramedHost | None = None
        self._first: threading.Thread | None = None
        self._not_before = 0.0

    @property
    def reached(self) -> bool:
        """Whether a connection was had to the host that made the last offer."""
        return self._reached is not None

    def call(self, request: Buffer, until: float, *, patient: bool = True) -> bytes | None:
        """Return the answer; None if nothing was asked. Raises RequestError.

        ``until`` in seconds of time.monotonic. Who is not ``patient`` waits for no connection: if
        there is none, one is made for the calls to come.
        """
        if len(request) + COUNTED > limits.FRAME_MAX:
            return None
        connection = self._taken()
        if connection is None and not patient:
            self._prepare()
        elif connection is None:
            connection = self._made(until)
        while connection is not None:
            try:
                return connection.exchange(request, until)
            except UnsentError:
                pass
            finally:
                self._give_back(connection)
            connection = self._taken()
        if time.monotonic() >= until:
            detail = f"{self._target}: no connection before the deadline"
            raise RequestError(Code.DEADLINE_EXCEEDED, detail)
        return None

    def renew(self, host: FramedHost) -> None:
        """Use ``host`` from now on; calls under way at another go on."""
        with self._lock:
            self._host, self._reached, self._not_before = host, None, 0.0
            self._drop_idle()

    def close(self) -> None:
        """End all connections: calls under way fail."""
        with self._lock:
            self._host = None
            self._drop_idle()
            for connection in self._all:
                connection.cut()
            first = self._first
        if first is not None:
            first.join(limits.FRAMED_CONNECT_S)

    def _taken(self) -> Exchanges | None:
        """Return a connection that is open, silent and idle."""
        with self._lock:
            oldest = time.monotonic() - limits.FRAMED_POOL_IDLE_S
            while self._idle:
                connection = self._idle.pop()
                if connection.used >= oldest and connection.quiet:
                    return connection
                self._drop(connection)
            return None

    def _made(self, until: float) -> Exchanges | None:
        """Return a new connection, if one may be made here and now."""
        with self._lock:
            now = time.monotonic()
            host = self._host
            if host is None or now < self._not_before or len(self._all) >= limits.FRAMED_POOL:
                return None
            if self._reached is None:
                self._make_first(host)
                return None
            connection = self._new(self._reached)
        return self._connected(connection, until)

    def _prepare(self) -> None:
        """Have one made, if one may be made here and now."""
        with self._lock:
            host = self._reached or self._host
            full = len(self._all) >= limits.FRAMED_POOL
            if host is not None and not full and time.monotonic() >= self._not_before:
                self._make_first(host)

    def _make_first(self, host: FramedHost) -> None:
        """Have a thread make one, unless it is at it; the caller holds the lock."""
        if self._first is not None:
            return
        connection = self._new(host)
        self._first = threading.Thread(
            target=self._begin, args=(connection,), name="framed-connect", daemon=True
        )
        try:
            self._first.start()
        except RuntimeError:  # there is no thread to spare
            self._first = None
            self._drop(connection)
            self._pause()

    def _begin(self, connection: Exchanges) -> None:
        connected = self._connected(connection, math.inf)
        if connected is not None:
            self._give_back(connected)
        with self._lock:
            self._first = None

    def _new(self, host: FramedHost) -> Exchanges:
        connection = Exchanges(host, self._hello, self._target)
        self._all.add(connection)
        return connection

    def _connected(self, connection: Exchanges, until: float) -> Exchanges | None:
        """Return it connected, None if it led nowhere; ``until``: a call's deadline."""
        try:
            address = connection.connect(min(until - time.monotonic(), limits.FRAMED_CONNECT_S))
        except NowhereError:
            with self._lock:
                self._drop(connection)
                # That a call had no time for it says nothing of the host.
                if self._of_now(connection) and time.monotonic() < until:
                    self._pause()
            return None
        except BaseException:
            with self._lock:
                self._drop(connection)
            raise
        with self._lock:
            if self._of_now(connection):
                self._reached = connection.host._replace(name=address)
        return connection

    def _pause(self) -> None:
        self._reached = None
        self._not_before = time.monotonic() + limits.CALL_STREAM_AGAIN_S

    def _of_now(self, connection: Exchanges) -> bool:
        """Tell whether the connection is to the host that made the last offer."""
        return self._host is not None and self._host.offer == connection.host.offer

    def _give_back(self, connection: Exchanges) -> None:
        with self._lock:
            if not connection.usable or not self._of_now(connection):
                self._drop(connection)
                return
            self._idle.append(connection)
            if self._idle[0].used < connection.used - limits.FRAMED_POOL_IDLE_S:
                self._drop(self._idle.pop(0))

    def _drop_idle(self) -> None:
        for connection in self._idle:
            self._drop(connection)
        self._idle.clear()

    def _drop(self, connection: Exchanges) -> None:
        self._all.discard(connection)
        connection.close()
