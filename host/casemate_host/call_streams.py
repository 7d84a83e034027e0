"""``InferMany``: calls of `Infer` that share one stream to this host (SPEC 9.6.2).

Each is let in, relayed, answered, counted and refused as if it came by itself; the stream only
carries them. Two threads serve it: one takes questions and passes them on, the other takes what the
enclave answers and gives it to the client, all that is there at a time.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_host.admission import ShedError
from casemate_host.call_stream import CallStream

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc

    from casemate_host.admission import Patience
    from casemate_host.call import Call
    from casemate_host.callers import Caller
    from casemate_host.desk import Desk
    from casemate_host.gate import Pace
    from casemate_host.metrics import Metrics
    from casemate_host.relay import Relay
    from casemate_host.standing import Board
    from casemate_host.tracing import Metadata, Trace, Tracer
    from casemate_host.workers import Workers

METHOD: Final = "InferMany"


class Admission:
    """Lets questions in as the gate lets in calls, and counts them as `Infer`."""

    def __init__(
        self,
        desk: Desk,
        board: Board,
        metrics: Metrics,
        workers: Workers,
        pace: Pace,
        *,
        patience: Patience,
        tracer: Tracer,
    ) -> None:
        """``workers``: those of `Infer`, whose number bounds both kinds together."""
        self._patience = patience
        self._tracer = tracer
        self._desk = desk
        self._board = board
        self._metrics = metrics
        self._workers = workers
        self._pace = pace

    def enter(self, caller: Caller, size: int, metadata: Metadata) -> Trace:
        """Begin a question of ``size`` bytes, to be ended with ``leave``; return its trace.

        Raises CasemateError.
        """
        if self._workers.full:
            self._patience.press(self._workers)
            raise ShedError("too many calls at a time", self._pace.wait_s())
        self._board.require()
        if size > limits.CALL_STREAM_REQUEST_MAX:
            raise CasemateError(
                Code.TOO_LARGE, f"{size} bytes, limit {limits.CALL_STREAM_REQUEST_MAX}"
            )
        caller.enter()
        caller.spend(size)
        self._workers.hold()
        trace = self._tracer.begin("Infer", metadata)
        trace.caller(caller.name)
        return trace

    def leave(self, caller: Caller) -> None:
        """End a question that was let in."""
        self._workers.let_go()
        caller.leave()

    def answered(self, caller: Caller, size: int, took_s: float) -> None:
        """Count an answered question; ``size`` is the question's."""
        self._pace.ended()
        self._metrics.answered(caller.name, took_s)
        self._desk.traffic.answered("Infer", size)

    def refused(self, caller: Caller, code: Code) -> None:
        """Count a question that ended with ``code``, let in or not."""
        self._desk.refused("Infer", code, caller.name)


class CallStreamService:
    """``InferMany``: serves the streams, each in a worker of its own."""

    def __init__(self, desk: Desk, relay: Relay, admission: Admission, patience: Patience) -> None:
        self._desk = desk
        self._relay = relay
        self._admission = admission
        self._patience = patience
        self._lock = threading.Lock()
        self._streams: set[CallStream] = set()
        self._draining = False

    def serve(
        self, caller: Caller | None, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Answer one stream."""

        def answer(call: Call) -> Iterator[bytes]:
            who = self._desk.known(caller, context)
            call.of(who.name)
            with who.call_stream(), self._streaming(who, call, context) as stream:
                thread = threading.Thread(
                    target=stream.take, args=(messages,), name="call-stream-in", daemon=True
                )
                thread.start()
                for message in stream.answers():
                    with self._patience.waiting(context):
                        yield message

        return self._desk.serve_stream(METHOD, context, answer)

    def drain(self) -> None:
        """Ask every client to end its stream, and new ones at once."""
        with self._lock:
            self._draining = True
            streams = list(self._streams)
        for stream in streams:
            stream.retire()

    @contextlib.contextmanager
    def _streaming(
        self, caller: Caller, call: Call, context: grpc.ServicerContext
    ) -> Iterator[CallStream]:
        metadata = tuple(context.invocation_metadata() or ())
        stream = CallStream(self._relay, self._admission, caller, call, metadata)
        with self._lock:
            if self._draining:
                raise CasemateError(Code.UNAVAILABLE, "the host is stopping")
            self._streams.add(stream)
        call.attach(stream)
        try:
            yield stream
        finally:
            call.detach()
            with self._lock:
                self._streams.discard(stream)
            stream.end()
