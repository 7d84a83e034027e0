"""The enclave's only way out: named endpoints from a list, then a transparent stream (SPEC 9.4).

The list protects the operator's network, not the enclave, whose TLS ends inside. Memory and threads
are bounded: one thread and two buffers for each of a fixed number of connections.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.channel import VsockAddress, listen
from casemate.errors import CasemateError, Code
from casemate_host.admission import Slots
from casemate_host.events import describe, log
from casemate_host.splice import splice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.channel import Address
    from casemate_host.config import EgressConfig

_CONNECTED: Final = b"\x00"
_REFUSED: Final = b"\x01"
_UNREACHABLE: Final = b"\x02"
_LENGTH: Final = 4


class Egress:
    """Listens for the enclave and dials what the list allows."""

    def __init__(self, config: EgressConfig, enclave: Address) -> None:
        """``enclave``: where the enclave listens; over vsock no other context id is served."""
        self._config = config
        self._cid = enclave.cid if isinstance(enclave, VsockAddress) else None
        self._slots = Slots(config.connections)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._stopping = False
        self._wake, self._woken = socket.socketpair()

    def start(self) -> None:
        """Listen; raises FrameError(UNAVAILABLE)."""
        self._listener = listen(self._config.address)
        self._acceptor = threading.Thread(target=self._accept, name="egress", daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        """Close the listener and cut every stream; returns when all threads have ended."""
        self._wake.send(b"\x00")
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            self._stopping = True
            threads = list(self._threads)
            for channel in self._open:
                with contextlib.suppress(OSError):
                    channel.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(limits.EGRESS_CONNECT_S + limits.EGRESS_HANDSHAKE_S)
        self._wake.close()
        self._woken.close()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while self._woken.fileno() not in {descriptor for descriptor, _ in poll.poll()}:
            try:
                channel, peer = self._listener.accept()
            except OSError as error:
                log.warning("egress_accept_failed", **describe(error))
                time.sleep(limits.BACKOFF_FIRST_S)  # out of descriptors: let some be closed
                continue
            self._admit(channel, peer)

    def _admit(self, channel: socket.socket, peer: object) -> None:
        if self._cid is not None and (not isinstance(peer, tuple) or peer[0] != self._cid):
            log.warning("egress_foreign_peer")
            channel.close()
            return
        try:
            self._slots.take()
        except CasemateError as error:
            log.warning("egress_full", code=error.code)
            _end(channel, _UNREACHABLE)
            return
        thread = threading.Thread(target=self._run, args=(channel,), name="splice", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had
            self._ended(thread)
            log.warning("egress_full", code=Code.OVERLOADED)
            _end(channel, _UNREACHABLE)

    def _ended(self, thread: threading.Thread) -> None:
        self._slots.free()
        with self._lock:
            self._threads.discard(thread)

    def _run(self, channel: socket.socket) -> None:
        try:
            with channel, self._registered(channel):
                self._serve(channel)
        except OSError as error:
            log.info("egress_broken", **describe(error))
        except Exception as error:  # noqa: BLE001 - one stream's failure must not pass unseen, nor end others
            log.error("internal_error", **describe(error))
        finally:
            self._ended(threading.current_thread())

    def _serve(self, channel: socket.socket) -> None:
        name = _read_name(channel)
        target = self._config.allow.get(name) if name is not None else None
        if target is None:
            log.warning("egress_refused", name=name or "not a name")
            _end(channel, _REFUSED)
            return
        try:
            upstream = socket.create_connection(target, limits.EGRESS_CONNECT_S)
        except OSError as error:
            log.warning("egress_unreachable", name=name, **describe(error))
            _end(channel, _UNREACHABLE)
            return
        with upstream, self._registered(upstream):
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            channel.sendall(_CONNECTED)
            splice(channel, upstream, self._config.idle_s)

    @contextlib.contextmanager
    def _registered(self, channel: socket.socket) -> Iterator[None]:
        """Let ``stop`` cut this socket while the block runs."""
        with self._lock:
            if self._stopping:
                channel.shutdown(socket.SHUT_RDWR)
            self._open.add(channel)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(channel)


def _end(channel: socket.socket, verdict: bytes) -> None:
    with contextlib.suppress(OSError):
        channel.settimeout(1.0)
        channel.sendall(verdict)
    channel.close()


def _read_name(channel: socket.socket) -> str | None:
    """Read ``LP("host:port")``; None if it is no such name. The whole of it within one deadline."""
    deadline = time.monotonic() + limits.EGRESS_HANDSHAKE_S
    length = int.from_bytes(_read(channel, _LENGTH, deadline), "big")
    if not 1 <= length <= limits.EGRESS_NAME_MAX:
        return None
    name = _read(channel, length, deadline)
    return name.decode() if name.isascii() and name.decode("latin-1").isprintable() else None


def _read(channel: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        channel.settimeout(max(0.001, deadline - time.monotonic()))
        piece = channel.recv(count - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    return data
