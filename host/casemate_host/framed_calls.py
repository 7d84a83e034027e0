"""Framed connections that carry one exchange at a time: requests of any size (SPEC 9.6.3)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.framed import Kind
from casemate.frames import ANSWER, COUNTED, FrameType
from casemate_host.call import Call
from casemate_host.events import describe, log
from casemate_host.framed_channel import GoneError
from casemate_host.metrics import ADMISSION, RELAY

if TYPE_CHECKING:
    from casemate.hangups import HangUps
    from casemate_host.callers import Caller
    from casemate_host.framed_connection import FramedConnection
    from casemate_host.infer_admission import InferAdmission
    from casemate_host.pipe import Pipe
    from casemate_host.relay import Relay

MESSAGE_MAX: Final = limits.FRAME_MAX - COUNTED


class FramedCalls:
    """Answers what such a connection asks; thread-safe."""

    def __init__(self, relay: Relay, admission: InferAdmission, hang_ups: HangUps) -> None:
        self._relay = relay
        self._admission = admission
        self._hang_ups = hang_ups

    def serve(
        self, connection: FramedConnection, caller: Caller, head: tuple[int, int, int]
    ) -> None:
        """Answer one request after the other, from the one that ``head`` begins.

        Raises CasemateError for a frame that is not allowed here, GoneError, OSError.
        """
        frame: tuple[int, int, int] | None = head
        while frame is not None:
            size, kind, budget_ms = frame
            if kind != Kind.REQUEST:
                raise CasemateError(Code.MALFORMED, f"a frame of type {kind} among requests")
            self._serve(connection, caller, size, budget_ms)
            frame = connection.next_frame()

    def _serve(
        self, connection: FramedConnection, caller: Caller, size: int, budget_ms: int
    ) -> None:
        channel = connection.channel
        begun = time.monotonic()
        try:
            trace = self._admission.enter(caller, size, MESSAGE_MAX, ())
        except CasemateError as error:
            self._admission.refused(caller, error.code)
            channel.discard(size)
            channel.refuse(error)
            return
        call = Call(budget_ms / 1000, trace=trace)
        code = Code.DEADLINE_EXCEEDED  # unless it comes to an end here, its client went away
        try:
            request = self._receive(connection, size, call)
            caller.spend(size)
            received = time.monotonic()
            outcome = self._relayed(connection, request, call)
            code = outcome.code if isinstance(outcome, CasemateError) else Code.OK
        finally:
            call.finish()
            self._admission.leave(caller)  # before the answer: the client may ask at once
            trace.end(code)
            if code is not Code.OK:
                self._admission.refused(caller, code)
        if isinstance(outcome, CasemateError):
            channel.refuse(outcome)
            return
        took_s = time.monotonic() - begun
        try:
            self._answer(connection, caller, outcome)
        finally:  # counted behind it, so that it leaves the sooner, and whether or not it is taken
            self._admission.answered(caller, [size], [took_s], received - begun)

    def _receive(self, connection: FramedConnection, size: int, call: Call) -> bytes | Pipe:
        """Return the request; raises GoneError, OSError if it does not come: all is over then."""
        channel, patience = connection.channel, self._admission.patience
        patience.begin(connection, self._admission.workers)
        try:
            with call.trace.step(ADMISSION):
                return channel.message(size)
        except CasemateError as error:
            channel.farewell(error)
            raise GoneError from None
        finally:
            patience.end(connection, self._admission.workers)

    def _relayed(
        self, connection: FramedConnection, request: bytes | Pipe, call: Call
    ) -> bytes | CasemateError:
        """Return the enclave's answer, or why there is none; raises GoneError."""
        try:
            connection.run(call)
            with (
                call.trace.step(RELAY),
                self._hang_ups.watching(connection.channel.socket, connection),
            ):
                return self._relay.exchange(FrameType.REQUEST, request, call)
        except CasemateError as error:
            return error
        except GoneError:
            raise
        except Exception as error:  # noqa: BLE001 - no foreign text may reach a caller
            log.error("internal_error", method="Infer", **describe(error))
            return CasemateError(Code.INTERNAL, "internal error")

    def _answer(self, connection: FramedConnection, caller: Caller, answer: bytes) -> None:
        """Give the answer to the client; what it does not take counts against its caller."""
        channel = connection.channel
        rest = channel.begin(Kind.REQUEST | ANSWER, answer)
        if rest is None:
            return
        caller.unread.on_stream(1, len(answer))
        try:
            channel.finish(rest)
        finally:
            caller.unread.on_stream(-1, -len(answer))
