"""Streams to the outside through the host's egress proxy (SPEC 9.4).

The host sees the name and every byte; what runs over the stream is TLS that ends in the enclave.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from casemate import channel, limits
from casemate.errors import Code, FrameError, KeyReleaseError
from casemate.wire import lp
from casemate_kms import deadline

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from casemate.channel import Address

    Dial = Callable[[str, int], socket.socket]

_CONNECTED: Final = b"\x00"
_REFUSED: Final = b"\x01"
_PORTS: Final = range(1, 1 << 16)


class EgressRefusedError(KeyReleaseError):
    """The operator's egress list does not name the destination; asking again changes nothing."""


def dialer(address: Address) -> Dial:
    """Return a dialer through ``address`` that keeps the deadline of the call it serves."""

    def dial(host: str, port: int) -> socket.socket:
        return dial_egress(address, host, port, min(deadline.remaining(), limits.KMS_TIMEOUT_S))

    return dial


def dial_egress(address: Address, host: str, port: int, timeout_s: float) -> socket.socket:
    """Return a stream to ``host:port`` within ``timeout_s`` seconds; the caller closes it.

    Raises KeyReleaseError(KEY_RELEASE_UNAVAILABLE), as EgressRefusedError when the list refuses.
    """
    name = f"{host}:{port}"
    encoded = name.encode("ascii", errors="replace")
    if port not in _PORTS or not host.isascii() or len(encoded) > limits.EGRESS_NAME_MAX:
        raise KeyReleaseError(
            Code.KEY_RELEASE_UNAVAILABLE, "not a destination that egress can name"
        )
    end = time.monotonic() + timeout_s
    try:
        stream = channel.connect(address, timeout_s)
    except FrameError:
        raise _unavailable(f"the egress proxy at {address} cannot be reached") from None
    try:
        _judge(_ask(stream, lp(encoded), end), name)
    except OSError:
        stream.close()
        raise _unavailable(f"the egress proxy did not answer for {name}") from None
    except BaseException:
        stream.close()
        raise
    return stream


def _ask(stream: socket.socket, question: bytes, end: float) -> bytes:
    """Send the name and return the one byte of the answer, or none if the proxy closed."""
    stream.settimeout(_left(end))
    stream.sendall(question)
    stream.settimeout(_left(end))
    return stream.recv(1)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _judge(verdict: bytes, name: str) -> None:
    if verdict == _CONNECTED:
        return
    if verdict == _REFUSED:
        text = f"the egress list refuses {name}"
        raise EgressRefusedError(Code.KEY_RELEASE_UNAVAILABLE, text)
    raise _unavailable(f"the egress proxy cannot reach {name}")


def _unavailable(detail: str) -> KeyReleaseError:
    return KeyReleaseError(Code.KEY_RELEASE_UNAVAILABLE, detail)
