"""Framed connections that carry a stream, as ``InferStream`` does (SPEC 9.6.3, 9.3.2)."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import CasemateError, Code, FrameError
from casemate.framed import Kind
from casemate.frames import ANSWER, FrameType, encode_frame
from casemate_host.call import Call
from casemate_host.events import describe, log
from casemate_host.framed_channel import GoneError
from casemate_host.metrics import ADMISSION, RELAY
from casemate_host.stream_passage import LostError, StreamPassage

if TYPE_CHECKING:
    from casemate_host.callers import Caller
    from casemate_host.framed_connection import FramedConnection
    from casemate_host.infer_admission import InferAdmission
    from casemate_host.relay import Relay

METHOD: Final = "InferStream"
_GRACE_S: Final = 0.5  # as in the relay: the enclave ends the stream at the deadline itself


class FramedChunks:
    """Carries such streams; thread-safe."""

    def __init__(self, relay: Relay, admission: InferAdmission, within_s: float) -> None:
        """``within_s``: how long a client may take to send one frame."""
        self._relay = relay
        self._admission = admission
        self._within_s = within_s

    def serve(
        self, connection: FramedConnection, caller: Caller, head: tuple[int, int, int]
    ) -> None:
        """Carry the stream whose first frame ``head`` begins; raises GoneError, OSError."""
        channel = connection.channel
        size, _, budget_ms = head
        try:
            trace = self._admission.enter(caller, size, limits.STREAM_MESSAGE_MAX, ())
        except CasemateError as error:
            self._admission.refused(caller, error.code)
            channel.farewell(error)
            return
        stream = _Stream(connection, caller, Call(budget_ms / 1000, trace=trace))
        code = Code.DEADLINE_EXCEEDED  # unless it comes to an end here, its client went away
        try:
            fault = self._fault(stream, size)
            code = Code.OK if fault is None else fault.code
        finally:
            self._admission.leave(caller)  # before the end is told: the client may come at once
            trace.end(code)
            if code is Code.OK:
                self._admission.carried(caller, stream.answered)
            else:
                self._admission.refused(caller, code)
        stream.end(fault)

    def _fault(self, stream: _Stream, size: int) -> CasemateError | None:
        """Carry it; return why it did not come to its end. Raises GoneError, OSError."""
        try:
            with stream.caller.stream():
                self._carry(stream, size)
        except CasemateError as error:
            return error
        except LostError:
            self._relay.lost()
            return FrameError(Code.UNAVAILABLE, "the enclave went away within the stream")
        except (GoneError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - no foreign text may reach a caller
            log.error("internal_error", method=METHOD, **describe(error))
            return CasemateError(Code.INTERNAL, "internal error")
        return None

    def _carry(self, stream: _Stream, size: int) -> None:
        """Carry it to its end; raises CasemateError, LostError, GoneError, OSError."""
        call = stream.call
        with call.trace.step(ADMISSION):
            first = self._first(stream, size)
        with call.trace.step(RELAY), contextlib.closing(self._relay.dial(call)) as enclave:
            remaining_s = call.remaining_s()
            stream.passage = StreamPassage(
                stream.connection.channel.socket,
                enclave.channel,
                encode_frame(FrameType.STREAM, first, int(remaining_s * 1000) or 1),
                until=time.monotonic() + remaining_s + _GRACE_S,
                within_s=self._within_s,
            )
            del first
            stream.passage.run(stream.caller.spend)

    def _first(self, stream: _Stream, size: int) -> bytes:
        """Return the first message, which a client that is slow to send gives way with."""
        if not size:
            raise FrameError(Code.MALFORMED, "a stream without a message")
        connection, patience = stream.connection, self._admission.patience
        with patience.waiting(connection, self._admission.workers):
            first = connection.channel.payload(size)
        stream.caller.spend(size)
        return first


class _Stream:
    """One of them: whose it is, where it comes from, how far it got."""

    def __init__(self, connection: FramedConnection, caller: Caller, call: Call) -> None:
        call.of(caller.name)
        self.connection = connection
        self.caller = caller
        self.call = call
        self.passage: StreamPassage | None = None

    @property
    def answered(self) -> int:
        """Bytes of messages that the enclave answered."""
        return 0 if self.passage is None else self.passage.answered

    def end(self, error: CasemateError | None) -> None:
        """Say how it ended, unless that is within a frame; raises OSError."""
        channel = self.connection.channel
        if error is None:
            channel.send(Kind.STREAM | ANSWER, b"")
            channel.socket.shutdown(socket.SHUT_WR)
        elif self.passage is None or self.passage.clear:
            channel.farewell(error)
        else:
            channel.shut()
