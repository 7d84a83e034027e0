"""What a client makes of a host's word on framed connections (SPEC 9.6.3), without input or output.

The offer comes from a host that need not be trusted. It says where to connect, and how to tell that
it is this host that answers there; what is sent there is sealed as ever.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from casemate import framed, frames
from casemate.client.call_book import BrokenError, Failure
from casemate.framed import Kind, Offer
from casemate.frames import ANSWER
from casemate.v1.confidential_inference_pb2 import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate.client.access import HostAccess
    from casemate.wire import Buffer

_PLAIN: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253})):\d{1,5}")
_SCHEMES: Final = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds"})
WELCOME: Final = frames.encode_frame(Kind.HELLO | ANSWER, b"")


class FramedHost(NamedTuple):
    """A host that takes framed connections: ``name`` as `socket` takes it, and what it offered."""

    name: str
    offer: Offer

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect."""
        return self.name, self.offer.port


def name_of(target: str, access: HostAccess) -> str | None:
    """Return the host's name or address if ``target`` may have framed connections, else None.

    Only a plain ``host:port`` without TLS may: not a socket's path nor a resolver's address.
    """
    if not hasattr(socket.socket, "sendmsg"):  # on Windows
        return None
    match = _PLAIN.fullmatch(target)
    if match is None or access.tls_roots is not None or match[2] in _SCHEMES:
        return None
    return match[1] or match[2]


def offered(metadata: Iterable[tuple[Any, ...]] | None) -> Offer | None:
    """Return what the trailing metadata of an answer offers, if anything."""
    for key, value, *_ in metadata or ():
        if key == framed.METADATA:
            return Offer.parse(value)
    return None


def hello_of(access: HostAccess) -> bytes:
    """Return the client's hello, a whole frame."""
    return framed.hello(*(value for _, value in access.metadata))


def refusal_in(payload: Buffer) -> Failure:
    """Return what a refused frame says; raises BrokenError."""
    try:
        return Failure.refused(Refusal.FromString(bytes(payload)))
    except DecodeError:
        raise BrokenError("a refusal that cannot be read") from None
