"""How a client reaches a host by its offer (SPEC 9.6.3): it hears the greeting before it speaks."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from casemate import limits
from casemate.client.framed import WELCOME

if TYPE_CHECKING:
    from casemate.client.framed import FramedHost

_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
_RESET: Final = struct.pack("ii", 1, 0)  # whatever was not sent is dropped
NO_SIGNAL: Final[int] = getattr(socket, "MSG_NOSIGNAL", 0)  # whatever the process does on SIGPIPE


class NowhereError(Exception):
    """The offer leads nowhere, or the host refuses. It was asked nothing.

    ``silent``: for all that is known somebody would have answered later.
    """

    def __init__(self, why: str, *, silent: bool = False) -> None:
        super().__init__(why)
        self.silent = silent

    def tells(self, within_s: float) -> bool:
        """Tell whether it says something of the host: it had its time, or was not silent."""
        return not self.silent or within_s >= limits.FRAMED_CONNECT_S


def nowhere(why: NowhereError | OSError) -> NowhereError:
    """Return what is said of the last address, which may have been silent."""
    return NowhereError(str(why), silent=isinstance(why, TimeoutError))


def prepare(channel: socket.socket) -> None:
    """Have what is written leave at once, and a host that is silent for long be given up."""
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if _USER_TIMEOUT is not None:
        silence = int(limits.FRAMED_READ_S * 1000)
        channel.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, silence)


def connecting_s(left_s: float) -> float:
    """Return how long a stream that has ``left_s`` may connect; half is for going by gRPC."""
    return min(limits.FRAMED_CONNECT_S, left_s / 2)


def for_stream(channel: socket.socket) -> None:
    """Have neither side wait for what the other does not take (SPEC 9.6.3).

    A stream may be held back for long, so silence does not end the connection; and this side's end
    is heard at once, as a reset, before bytes that nobody reads.
    """
    if _USER_TIMEOUT is not None:
        channel.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, 0)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class Dial:
    """One connection: made by one thread, ended by any."""

    def __init__(self, host: FramedHost, hello: bytes) -> None:
        """``hello``: the client's, a whole frame. Nothing is sent yet."""
        self.host = host
        self._hello = hello
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._over = False

    def connect(self, within_s: float) -> socket.socket:
        """Return a blocking socket on which questions may be sent; raises NowhereError.

        Its host has said what only the one that made the offer knows, and was told who asks.
        """
        until = time.monotonic() + within_s
        try:
            found = socket.getaddrinfo(*self.host.address, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NowhereError(type(error).__name__) from None
        why: NowhereError | OSError = NowhereError("no address")
        for left, (family, kind, protocol, _, address) in zip(
            range(len(found), 0, -1), found, strict=True
        ):
            share = time.monotonic() + (until - time.monotonic()) / left  # a silent one's
            try:
                channel = self._new(family, kind, protocol)
                self._reach(channel, address, share)
            except (OSError, NowhereError) as error:
                why = error
                self.close()
            else:
                return channel
        raise nowhere(why)

    def cut(self) -> None:
        """End the connection: whoever connects, sends or receives hears so."""
        with self._lock:
            self._over = True
            self._shut_down()

    def close(self) -> None:
        """Close the socket, if there is one; for the thread that uses it.

        It is shut down first, as a forked process may hold it too.
        """
        with self._lock:
            self._shut_down()
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def _shut_down(self) -> None:
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)

    def _new(self, family: int, kind: int, protocol: int) -> socket.socket:
        channel = socket.socket(family, kind, protocol)
        with self._lock:
            if self._over:
                channel.close()
                raise NowhereError("the client was closed")
            self._channel = channel
        return channel

    def _reach(self, channel: socket.socket, address: Any, until: float) -> None:  # noqa: ANN401 - each family has its own
        prepare(channel)
        channel.settimeout(_left(until))
        channel.connect(address)
        _expect(channel, self.host.offer.greeting, until)
        channel.settimeout(_left(until))
        channel.sendall(self._hello, NO_SIGNAL)
        _expect(channel, WELCOME, until)
        channel.settimeout(None)


def _expect(channel: socket.socket, words: bytes, until: float) -> None:
    """Read ``words``, and not a byte more; raises NowhereError at the first that is another."""
    heard = b""
    while heard != words:
        channel.settimeout(_left(until))
        piece = channel.recv(len(words) - len(heard))
        heard += piece
        if not piece or not words.startswith(heard):
            raise NowhereError("the host did not say what was expected")


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the host took too long")
    return left
