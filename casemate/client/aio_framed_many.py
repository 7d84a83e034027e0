"""Small calls of many tasks on one framed connection (SPEC 9.6.2, 9.6.3)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from casemate.client.aio_call_book import AsyncCallBook
from casemate.client.aio_framed_wire import Wire
from casemate.client.call_book import Failure
from casemate.client.framed import refusal_in
from casemate.errors import Code
from casemate.framed import Kind

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine


class ManyCalls:
    """A connection of type ``MANY``: what is asked in a turn of the loop leaves in one message."""

    def __init__(
        self, sock: socket.socket, target: str, ended: Callable[[ManyCalls], None]
    ) -> None:
        """``ended`` is told once no further call is taken."""
        self._target = target
        self._ended = ended
        self._book = AsyncCallBook(target, self._soon)
        self._loop = asyncio.get_running_loop()
        self._due = False  # a message will be sent in this turn of the loop
        self._taking = True
        self._wire = Wire(sock, Kind.MANY, self)

    @property
    def over(self) -> bool:
        """Whether the connection is at its end."""
        return self._wire.over

    def call(self, request: bytes, timeout_s: float) -> Coroutine[Any, Any, bytes] | None:
        """Ask, and wait for the answer, which raises RequestError; None if no call is taken."""
        if not self._taking:
            return None
        return self._book.call(request, timeout_s)

    def retire(self) -> None:
        """Take no further call; the connection ends with the last answer."""
        if self._taking:
            self._taking = False
            self._ended(self)
        if self._book.empty:
            self._wire.close()

    def close(self) -> None:
        """End the connection; calls under way fail."""
        self._wire.close()
        self._over(Failure(Code.UNAVAILABLE, f"{self._target}: the client was closed"))

    def _over(self, failure: Failure) -> None:
        self._book.fail(failure)
        self.retire()

    # What is sent

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        """Send what waits, until the host takes no more."""
        self._due = False
        while not (self._wire.over or self._wire.sending):
            message = self._book.next_message()
            if message is None:
                break
            self._wire.send(message)
        if not self._taking:
            self.retire()  # perhaps the last call was given up

    # What is heard

    def heard(self, payload: bytes, *, refused: bool) -> None:
        """Settle the calls that the host answers; raises BrokenError."""
        if refused:
            failure = refusal_in(payload)
            self._wire.close()
            self._over(failure)
            return
        if self._book.answered(payload) or not self._taking:
            self.retire()

    def drained(self) -> None:
        """Send what has come to wait meanwhile."""
        self._send()

    def lost(self, why: str) -> None:
        """Fail what is under way: whether the host had it executed is unknown."""
        self._over(Failure(Code.UNAVAILABLE, f"{self._target}: {why}"))
