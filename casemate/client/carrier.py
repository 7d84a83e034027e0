"""What carries the messages of a stream of calls (SPEC 9.6.2), as events that callers take."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import grpc

    from casemate.client.call_book import Failure


class Kind(Enum):
    """What has happened."""

    BEGAN = auto()
    SENT = auto()
    MESSAGE = auto()
    ENDED = auto()
    OTHER = auto()


class End(Protocol):
    """How it ended."""

    def code(self) -> grpc.StatusCode:
        """Return the status."""
        ...

    def failure(self, target: str) -> Failure:
        """Return what becomes of a question that has no answer."""
        ...


class Event(NamedTuple):
    """``message`` with MESSAGE, ``end`` with ENDED."""

    kind: Kind
    message: bytes = b""
    end: End | None = None


class Carrier(Protocol):
    """One stream, begun; the host's first message says that questions may be sent.

    Only `poll` waits. It is for one thread at a time, until `over`.
    """

    @property
    def over(self) -> bool:
        """Whether there will be no further event."""
        ...

    def send(self, message: bytes) -> bool:
        """Send a message; return whether none may be sent before its SENT.

        Nothing happens if the stream has ended.
        """
        ...

    def end_sending(self) -> None:
        """Say that no message follows."""
        ...

    def cancel(self) -> None:
        """End the stream; its last events still come."""
        ...

    def rouse(self) -> bool:
        """Have `poll` return soon; as ``send``."""
        ...

    def poll(self) -> Event:
        """Wait for the next event.

        An exception, such as one of a signal's handler, ends the stream without further events.
        """
        ...
