"""The gRPC front: takes bytes, gives bytes, decodes no payload (SPEC 9.6).

Workers: each call holds a thread, and each kind of call has its own. The gate refuses what exceeds
them, so no kind of call can take the workers of another, and nobody waits for one.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import grpc

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType
from casemate.v1 import confidential_inference_pb2 as pb
from casemate_host import call_streams, health
from casemate_host.admission import Patience, Slots
from casemate_host.call_streams import CallStreamService, OpenStreams
from casemate_host.desk import Desk
from casemate_host.evidence import EvidenceService
from casemate_host.framed import FramedServer
from casemate_host.gate import Gate, Route
from casemate_host.infer_admission import InferAdmission
from casemate_host.metrics import ADMISSION, RELAY
from casemate_host.reflection import reflection_handler
from casemate_host.streams import StreamService
from casemate_host.tls import server_credentials
from casemate_host.tracing import NO_TRACE
from casemate_host.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_host.call import Call
    from casemate_host.callers import Caller, Callers
    from casemate_host.config import FrontConfig
    from casemate_host.metrics import Metrics
    from casemate_host.relay import Relay
    from casemate_host.standing import Board
    from casemate_host.tracing import Tracer

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ConfidentialInference"].full_name
MESSAGE_MAX: Final = limits.FRAME_MAX - 5  # what a frame carries beside its type and budget
_SLACK: Final = (
    64 * limits.KIB
)  # lets a message that is a little too large be refused with its code


class Front:
    """Serves ``casemate.v1.ConfidentialInference`` by relaying to the enclave."""

    def __init__(
        self,
        config: FrontConfig,
        relay: Relay,
        board: Board,
        *,
        callers: Callers,
        metrics: Metrics,
        tracer: Tracer = NO_TRACE,
    ) -> None:
        self._config = config
        self._relay = relay
        self._board = board
        self._metrics = metrics
        streams = Slots(limits.STREAMS_MAX)
        self.health = health.Health(streams)
        self._patience = Patience(config.receive_s, callers.unread)
        self._desk = Desk(relay, callers, metrics, self._patience, tracer)
        self.unary = Workers(config.unary, "call")
        self._evidence = Workers(limits.EVIDENCE_CALLS_MAX + limits.SPARE_WORKERS, "call-evidence")
        self._others = Workers(limits.STREAMS_MAX + limits.SPARE_WORKERS, "call-other")
        self.frames_address: str | None = None
        self._gate = Gate(callers, self._others, self._desk.refused, self._patience)
        self._pace = self._gate.add(f"/{SERVICE}/Infer", Route("Infer", self.unary, self._infer))
        evidence = EvidenceService(self._desk, relay, board, self._evidence).serve
        self._gate.add(
            f"/{SERVICE}/GetEvidence",
            Route("GetEvidence", self._evidence, evidence, metered=False),
        )
        self.streams = Workers(config.streams, "stream")
        streaming = StreamService(self._desk, relay, board, self.streams).serve
        stream_pace = self._gate.add(
            f"/{SERVICE}/InferStream",
            Route("InferStream", self.streams, streaming, response_streaming=True),
        )
        self._carriers = Workers(limits.CALL_STREAMS_MAX, "call-stream")
        admission_of = partial(
            InferAdmission,
            self._desk,
            board,
            metrics,
            patience=self._patience,
            tracer=tracer,
        )
        admission = admission_of(self.unary, self._pace)
        self._open_streams = OpenStreams(relay, admission)
        call_stream = CallStreamService(self._desk, self._open_streams, self._patience).serve
        self._gate.add(
            f"/{SERVICE}/{call_streams.METHOD}",
            Route(
                call_streams.METHOD,
                self._carriers,
                call_stream,
                response_streaming=True,
                metered=False,
            ),
        )
        self._framed = FramedServer(
            *(config.frames, callers, self._desk, relay),
            admission=admission,
            streams=self._open_streams,
            carrying=admission_of(self.streams, stream_pace, method="InferStream"),
            within_s=config.receive_s,
        )
        metrics.gauge("framed_connections", "Framed connections", lambda: self._framed.connections)
        self._server = _server(self._others, self._gate)
        self._server.add_generic_rpc_handlers((self.health.handler(),))
        names = (SERVICE, health.SERVICE)
        self._server.add_generic_rpc_handlers((reflection_handler(names, streams),))
        metrics.gauge("calls_under_way", "Infer calls admitted", lambda: self.unary.taken)
        self._workers = self.unary, self.streams, self._carriers, self._evidence, self._others
        metrics.gauge("call_streams", "Streams of calls", lambda: self._carriers.taken)
        metrics.gauge("streams_under_way", "InferStream calls", lambda: self.streams.taken)
        unread = callers.unread
        metrics.gauge(
            "answers_unread",
            "Answers that their callers have not read yet",
            lambda: sum(answers.count for answers in unread),
        )
        metrics.gauge("relay_busy", "Exchanges with the enclave under way", lambda: relay.busy)
        metrics.gauge("relay_waiting", "Calls that wait for a connection", lambda: relay.waiting)

    def start(self) -> str:
        """Listen and serve; return the bound ``host:port``. Raises CasemateError(UNAVAILABLE)."""
        listen, tls = self._config.listen, self._config.tls
        try:
            if tls is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, server_credentials(tls))
        except (RuntimeError, OSError) as error:
            kind = type(error).__name__
            raise CasemateError(Code.UNAVAILABLE, f"cannot listen on {listen}: {kind}") from None
        try:
            self.frames_address = self._framed.bind()
        except CasemateError:
            self._server.stop(None)
            raise
        self._desk.offer = self._framed.offer
        self._patience.start()
        self._framed.start()
        self._server.start()
        return f"{listen.rsplit(':', 1)[0]}:{port}"

    def stop(self, drain_s: float) -> None:
        """Refuse new calls, let those under way end within ``drain_s`` seconds, cut the rest."""
        self.health.end()
        self._framed.drain()
        self._open_streams.drain()
        done = self._server.stop(drain_s)
        until = time.monotonic() + drain_s
        for workers in (self.unary, self.streams, self._carriers):
            workers.wait_empty(max(0.0, until - time.monotonic()))
        self._framed.stop(max(0.0, until - time.monotonic()))
        self._server.stop(min(0.5, drain_s))
        done.wait()
        self._patience.stop()
        for workers in self._workers:
            workers.shutdown(wait=True)
        self.report()

    def report(self) -> None:
        """Log what happened since the last report."""
        self._desk.traffic.report()

    def _infer(
        self, caller: Caller | None, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> bytes:
        def answer(call: Call) -> tuple[bytes, int]:
            begun = time.monotonic()
            self._board.require()
            with self._desk.admitted(caller, context) as admitted:
                call.of(admitted.name, admitted.unread)
                with call.trace.step(ADMISSION):
                    request = self._desk.receive(messages, context, MESSAGE_MAX, self.unary)
                    admitted.spend(len(request))
                received = time.monotonic()
                with call.trace.step(RELAY):
                    response = self._relay.exchange(FrameType.REQUEST, request, call)
            self._pace.ended()
            self._time(begun, received)
            return response, len(request)

        return self._desk.serve("Infer", context, answer)

    def _time(self, begun: float, received: float) -> None:
        ended = time.monotonic()
        self._metrics.steps[ADMISSION].add(received - begun)
        self._metrics.steps[RELAY].add(ended - received)
        self._metrics.calls.add(ended - begun)


def _server(workers: Workers, gate: Gate) -> grpc.Server:
    options = [
        ("grpc.so_reuseport", 0),  # a second host on the same port must fail, not share it
        ("grpc.max_receive_message_length", MESSAGE_MAX + _SLACK),
        ("grpc.max_send_message_length", limits.FRAME_MAX),
        ("grpc.max_concurrent_streams", limits.STREAMS_PER_CONNECTION),
        ("grpc.max_metadata_size", 16 * limits.KIB),
        ("grpc.server_handshake_timeout_ms", int(limits.HANDSHAKE_S * 1000)),
        ("grpc.max_connection_idle_ms", int(limits.CONNECTION_IDLE_S * 1000)),
        ("grpc.keepalive_time_ms", int(limits.KEEPALIVE_S * 1000)),
    ]
    return grpc.server(
        workers,
        options=options,
        interceptors=[gate],
        compression=grpc.Compression.NoCompression,
    )
