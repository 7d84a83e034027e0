"""Framed connections: the listener beside gRPC, and who is let in there (SPEC 9.6.3; THREATS C3).

Each connection has a worker from its greeting to its end. Connections beyond their number are
closed at once: whoever made them makes calls instead.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.framed import Kind, Offer
from casemate.hangups import HangUps
from casemate_host.events import describe, log
from casemate_host.framed_calls import FramedCalls
from casemate_host.framed_channel import FramedChannel, GoneError
from casemate_host.framed_chunks import FramedChunks
from casemate_host.framed_connection import FramedConnection
from casemate_host.framed_streams import FramedStreams
from casemate_host.toml_table import parse_endpoint
from casemate_host.workers import Workers

if TYPE_CHECKING:
    from casemate_host.call_streams import OpenStreams
    from casemate_host.callers import Caller, Callers
    from casemate_host.desk import Desk
    from casemate_host.infer_admission import InferAdmission
    from casemate_host.relay import Relay

METHOD: Final = "Frames"  # what connections that are refused are counted as
_BACKLOG: Final = 128
_ACCEPT_PAUSE_S: Final = 0.1  # out of file descriptors: connections end, so wait for one to do so
_LOOK_S: Final = 0.05
_LAST_S: Final = 0.5  # for clients to take the last word


class FramedServer:
    """Listens at ``listen`` (``host:port``; None: nowhere) for framed connections."""

    def __init__(
        self,
        listen: str | None,
        callers: Callers,
        desk: Desk,
        relay: Relay,
        *,
        admission: InferAdmission,
        streams: OpenStreams,
        carrying: InferAdmission,
        within_s: float,
    ) -> None:
        """``carrying``: lets in streams of chunks.

        ``within_s``: how long a client may take to send one frame, and to take one.
        """
        self._listen = listen
        self._callers = callers
        self._desk = desk
        self._relay = relay
        self._patience = admission.patience
        self._within_s = within_s
        self._hang_ups = HangUps()
        self._calls = FramedCalls(relay, admission, self._hang_ups)
        self._streams = FramedStreams(desk, streams, self._hang_ups)
        self._chunks = FramedChunks(relay, carrying, within_s)
        self._workers = Workers(limits.FRAMED_MAX, "framed")
        self._lock = threading.Lock()
        self._open: set[FramedConnection] = set()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._thread = threading.Thread(target=self._accept, name="framed-accept", daemon=True)
        self.offer: Offer | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return self._workers.taken

    def bind(self) -> str | None:
        """Take the address; return it, ``host:port``, if any. Raises CasemateError(UNAVAILABLE)."""
        if self._listen is None:
            return None
        host, port = parse_endpoint(self._listen, "front.frames")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server(
                (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=host == "::"
            )
        except OSError as error:
            detail = f"cannot listen on {self._listen}: {type(error).__name__}"
            raise CasemateError(Code.UNAVAILABLE, detail) from None
        port = self._listener.getsockname()[1]
        self.offer = Offer.new(port)
        return f"{self._listen.rsplit(':', 1)[0]}:{port}"

    def start(self) -> None:
        """Take connections, at the address of ``bind``."""
        if self._listener is not None:
            self._hang_ups.start()
            self._thread.start()

    def drain(self) -> None:
        """Take no more connections, and end each when nothing is under way on it."""
        self._stopping.set()
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()
        for connection in self._present():
            connection.retire()

    def stop(self, within_s: float) -> None:
        """After ``drain``: wait for what is under way, cut the rest, end every thread."""
        until = time.monotonic() + within_s
        while time.monotonic() < until and any(one.busy for one in self._present()):
            self._workers.wait_empty(_LOOK_S)
        self._workers.wait_empty(min(_LAST_S, within_s))
        for connection in self._present():
            connection.cancel()
        self._workers.shutdown(wait=True)
        self._hang_ups.stop()
        self._hang_ups.join()

    def _present(self) -> list[FramedConnection]:
        with self._lock:
            return list(self._open)

    # In the thread that accepts

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                if self._stopping.wait(_ACCEPT_PAUSE_S):
                    return
                continue
            try:
                self._let_in(channel)
            except OSError:  # it has gone
                channel.close()

    def _let_in(self, channel: socket.socket) -> None:
        if self._workers.full:
            self._patience.press(self._workers)
            self._desk.refused(METHOD, Code.OVERLOADED)
            channel.close()
            return
        connection = FramedConnection(FramedChannel(channel, self._within_s), self._relay.wake)
        with self._lock:
            self._open.add(connection)
        try:
            self._workers.submit(self._serve, connection)
        except RuntimeError:  # the system spares no thread: others have room again when some end
            self._desk.refused(METHOD, Code.OVERLOADED)
            with self._lock:
                self._open.discard(connection)
            channel.close()

    # In a worker

    def _serve(self, connection: FramedConnection) -> None:
        channel = connection.channel
        try:
            self._talk(connection)
        except CasemateError as error:
            self._desk.refused(METHOD, error.code)
            channel.farewell(error)
        except (GoneError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - a fault of one connection ends it alone
            log.error("internal_error", method=METHOD, **describe(error))
            self._desk.refused(METHOD, Code.INTERNAL)
            channel.farewell(CasemateError(Code.INTERNAL, "internal error"))
        finally:
            channel.linger()
            with self._lock:
                self._open.discard(connection)
            channel.close()

    def _talk(self, connection: FramedConnection) -> None:
        """Serve a connection to its end; raises CasemateError, GoneError, OSError."""
        caller = self._meet(connection)
        with caller.framed():
            connection.channel.welcome()
            head = connection.next_frame()
            if head is None:
                return
            size, kind, _ = head
            if kind == Kind.MANY:
                self._streams.serve(connection, caller, size)
            elif kind == Kind.STREAM:
                self._chunks.serve(connection, caller, head)
            else:
                self._calls.serve(connection, caller, head)

    def _meet(self, connection: FramedConnection) -> Caller:
        """Exchange hellos; return who calls. Raises as ``_talk``."""
        if self.offer is None:
            raise AssertionError
        connection.channel.greet(self.offer)
        with self._patience.waiting(connection, self._workers):
            words = connection.channel.hello()
        caller = self._callers.claimed([("authorization", words)] if words else ())
        if caller is None:
            raise CasemateError(Code.UNAUTHENTICATED, "only a certificate could say who calls")
        return caller
