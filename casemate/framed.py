"""Framed connections between client and host: how they are offered and how they begin (SPEC 9.6.3).

What is said here is in the clear and the host's or the client's own word. It keeps a client from
speaking to another port or host than the one that made the offer; the seal does not rest on it.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from casemate import frames
from casemate.frames import HEAD_BYTES

METADATA: Final = "casemate-frames"
ID_BYTES: Final = 16
GREETING_BYTES: Final = HEAD_BYTES + 1 + ID_BYTES
_VERSION: Final = b"\x01"
_OFFER: Final = re.compile(rf"([1-9]\d{{0,4}}) ([0-9a-f]{{{2 * ID_BYTES}}})", re.ASCII)
_PORTS: Final = 1 << 16


class Kind(IntEnum):
    """Types of frames on a framed connection; an answer has bit 7 set."""

    REQUEST = 3
    STREAM = 4
    HELLO = 33
    MANY = 34


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a host takes framed connections, and what it says first on them."""

    port: int
    host_id: bytes

    @classmethod
    def new(cls, port: int) -> Self:
        """Return the offer of a host that starts now."""
        return cls(port, secrets.token_bytes(ID_BYTES))

    @classmethod
    def parse(cls, text: str | bytes | None) -> Self | None:
        """Read the metadata of SPEC 9.6.3; None for what is no offer."""
        if isinstance(text, bytes):
            text = text.decode("latin-1")
        match = _OFFER.fullmatch(text or "")
        if match is None or int(match[1]) >= _PORTS:
            return None
        return cls(int(match[1]), bytes.fromhex(match[2]))

    @property
    def text(self) -> str:
        """The value of the metadata ``METADATA``."""
        return f"{self.port} {self.host_id.hex()}"

    @property
    def greeting(self) -> bytes:
        """The host's hello, a whole frame of GREETING_BYTES."""
        return frames.encode_frame(Kind.HELLO, _VERSION + self.host_id)


def hello(authorization: str = "") -> bytes:
    """Return the client's hello, a whole frame; ``authorization`` as the metadata of that name."""
    return frames.encode_frame(Kind.HELLO, authorization.encode("ascii"))
