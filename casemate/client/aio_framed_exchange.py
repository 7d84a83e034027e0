"""One large call at a time on a framed connection of an event loop (SPEC 9.6.3)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from casemate import limits
from casemate.client.aio_framed_wire import Wire
from casemate.client.call_book import BrokenError, Failure
from casemate.client.framed import refusal_in
from casemate.errors import Code
from casemate.framed import Kind

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from casemate.wire import Buffer


class Exchange:
    """A connection of type ``REQUEST``, used by one call at a time."""

    def __init__(self, sock: socket.socket, target: str, ended: Callable[[Exchange], None]) -> None:
        """``ended`` is told once no further call can be made."""
        self._target = target
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[bytes | Failure] | None = None
        self._wire = Wire(sock, Kind.REQUEST, self)

    async def call(self, request: Buffer, timeout_s: float) -> bytes | None:
        """Return the answer; None if it was not asked. Raises RequestError.

        The connection lasts only if the host answered: its end has the enclave end the call.
        """
        if not self._wire.quiet:
            self.close()
            return None
        answer: asyncio.Future[bytes | Failure] = self._loop.create_future()
        self._answer = answer
        budget = min(int(timeout_s * 1000) or 1, limits.FRAME_BUDGET_MAX)
        if not self._wire.send(request, budget):
            return None
        late = Failure(Code.DEADLINE_EXCEEDED, f"{self._target}: no answer before the deadline")
        timer = self._loop.call_later(timeout_s, self._give_up, late)
        try:
            outcome = await answer
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            timer.cancel()
        if isinstance(outcome, Failure):
            raise outcome.error()
        return outcome

    def close(self) -> None:
        """End the connection; a call under way fails."""
        self._give_up(Failure(Code.UNAVAILABLE, f"{self._target}: the client was closed"))

    def _give_up(self, failure: Failure) -> None:
        if not self._wire.over:
            self._wire.close()
            self._ended(self)
        self._settle(failure)

    def _settle(self, outcome: bytes | Failure) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(outcome)

    def heard(self, payload: bytes, *, refused: bool) -> None:
        """Take the answer; raises BrokenError for what is none."""
        if self._answer is None or self._wire.sending:
            raise BrokenError("an answer before its request")
        self._settle(refusal_in(payload) if refused else payload)

    def drained(self) -> None:
        """Wait for the answer."""

    def lost(self, why: str) -> None:
        """Fail the call under way: whether the host had it executed is unknown."""
        self._ended(self)
        self._settle(Failure(Code.UNAVAILABLE, f"{self._target}: {why}"))
