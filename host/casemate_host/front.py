"""The gRPC front: takes bytes, gives bytes, decodes no payload (SPEC 9.6).

Workers: each call holds a thread, so there are as many as the limits of the kinds of call add up
to, and gRPC refuses what exceeds them. No kind of call can take the workers of another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf.message import DecodeError

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType
from casemate.v1 import confidential_inference_pb2 as pb
from casemate.wire import HASH_BYTES, digest
from casemate_host import health
from casemate_host.admission import Patience, Slots, TokenBucket
from casemate_host.call import Call
from casemate_host.events import Traffic, describe, log
from casemate_host.metrics import ADMISSION, RELAY
from casemate_host.reflection import reflection_handler
from casemate_host.status import abort

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_host.config import FrontConfig
    from casemate_host.metrics import Metrics
    from casemate_host.relay import Relay
    from casemate_host.standing import Board

SERVICE: Final = pb.DESCRIPTOR.services_by_name["ConfidentialInference"].full_name
MESSAGE_MAX: Final = limits.FRAME_MAX - 5  # what a frame carries beside its type and budget
_EVIDENCE_REQUEST_MAX: Final = 1024
_SLACK: Final = (
    64 * limits.KIB
)  # lets a message that is a little too large be refused with its code

_Answer = Callable[[Call], tuple[bytes, int]]  # response, and the size of the request


class Front:
    """Serves ``casemate.v1.ConfidentialInference`` by relaying to the enclave."""

    def __init__(self, config: FrontConfig, relay: Relay, board: Board, metrics: Metrics) -> None:
        self._config = config
        self._relay = relay
        self._board = board
        self._metrics = metrics
        streams = Slots(limits.STREAMS_MAX)
        self.health = health.Health(streams)
        self.traffic = Traffic()
        self._unary = Slots(config.unary)
        self._fresh = Slots(limits.EVIDENCE_CALLS_MAX)
        self._rate = TokenBucket(limits.EVIDENCE_RATE, limits.EVIDENCE_BURST)
        self._patience = Patience(config.receive_s)
        metrics.gauge("calls_under_way", "Infer calls admitted", lambda: self._unary.taken)
        metrics.gauge("relay_busy", "Exchanges with the enclave under way", lambda: relay.busy)
        metrics.gauge("relay_waiting", "Calls that wait for a connection", lambda: relay.waiting)
        workers = (
            config.unary + limits.EVIDENCE_CALLS_MAX + limits.STREAMS_MAX + limits.SPARE_WORKERS
        )
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="call")
        self._server = _server(self._pool, workers)
        self._server.add_generic_rpc_handlers((self._handler(), self.health.handler()))
        names = (SERVICE, health.SERVICE)
        self._server.add_generic_rpc_handlers((reflection_handler(names, streams),))

    def start(self) -> str:
        """Listen and serve; return the bound ``host:port``. Raises CasemateError(UNAVAILABLE)."""
        listen, tls = self._config.listen, self._config.tls
        try:
            if tls is None:
                port = self._server.add_insecure_port(listen)
            else:
                chain, key = (path.read_bytes() for path in tls)
                credentials = grpc.ssl_server_credentials([(key, chain)])
                port = self._server.add_secure_port(listen, credentials)
        except (RuntimeError, OSError) as error:
            kind = type(error).__name__
            raise CasemateError(Code.UNAVAILABLE, f"cannot listen on {listen}: {kind}") from None
        self._patience.start()
        self._server.start()
        return f"{listen.rsplit(':', 1)[0]}:{port}"

    def stop(self, drain_s: float) -> None:
        """Refuse new calls, let those under way end within ``drain_s`` seconds, cut the rest."""
        self.health.end()
        done = self._server.stop(drain_s)
        self._unary.wait_empty(drain_s)
        self._server.stop(min(0.5, drain_s))
        done.wait()
        self._patience.stop()
        self._pool.shutdown(wait=True)
        self.traffic.report()

    def _handler(self) -> grpc.GenericRpcHandler:
        # As streams of one message: admission is decided before a byte of it is taken.
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Infer": grpc.stream_unary_rpc_method_handler(self._infer),
            "GetEvidence": grpc.stream_unary_rpc_method_handler(self._get_evidence),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _infer(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        def answer(call: Call) -> tuple[bytes, int]:
            begun = time.monotonic()
            self._board.require()
            with self._unary.slot():
                request = self._receive(messages, context, MESSAGE_MAX)
                admitted = time.monotonic()
                response = self._relay.exchange(FrameType.REQUEST, request, call)
            ended = time.monotonic()
            self._metrics.steps[ADMISSION].add(admitted - begun)
            self._metrics.steps[RELAY].add(ended - admitted)
            self._metrics.calls.add(ended - begun)
            return response, len(request)

        return self._serve("Infer", context, answer)

    def _get_evidence(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        def answer(call: Call) -> tuple[bytes, int]:
            data = self._receive(messages, context, _EVIDENCE_REQUEST_MAX)
            nonce, wanted = _read_evidence_request(data)
            self._board.invite(wanted)
            if nonce is None:
                held = self._board.require()
                _check_instance(wanted, held.instance_digest)
                return held.data, len(data)
            self._rate.take()
            with self._fresh.slot():
                evidence = self._relay.exchange(FrameType.EVIDENCE, nonce, call)
            if wanted is not None:
                _check_instance(wanted, digest(pb.Evidence.FromString(evidence).instance_config))
            return evidence, len(data)

        return self._serve("GetEvidence", context, answer)

    def _receive(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, limit: int
    ) -> bytes:
        with self._patience.waiting(context):
            request = next(messages, None)
        if request is None:
            raise CasemateError(Code.MALFORMED, "a call without a message")
        if len(request) > limit:
            raise CasemateError(Code.TOO_LARGE, f"{len(request)} bytes, limit {limit}")
        return request

    def _serve(self, method: str, context: grpc.ServicerContext, answer: _Answer) -> bytes:
        result = self._outcome(method, context, answer)
        if isinstance(result, CasemateError):
            self.traffic.refused(method, result.code)
            self._metrics.ended(method, result.code)
            abort(context, result)
        self._metrics.ended(method, Code.OK)
        return result

    def _outcome(
        self, method: str, context: grpc.ServicerContext, answer: _Answer
    ) -> bytes | CasemateError:
        call = Call(context.time_remaining())

        def gone() -> None:
            if call.cancel():
                self._relay.wake()

        if not context.add_callback(gone):
            return _gone()
        try:
            response, size = answer(call)
        except CasemateError as error:
            return error
        except Exception as error:  # noqa: BLE001 - no foreign text may reach a caller
            if not context.is_active():
                return _gone()
            log.error("internal_error", method=method, **describe(error))
            return CasemateError(Code.INTERNAL, "internal error")
        finally:
            call.finish()
        self.traffic.answered(method, size)
        return response


def _gone() -> CasemateError:
    return CasemateError(Code.DEADLINE_EXCEEDED, "the caller went away")


def _server(pool: ThreadPoolExecutor, workers: int) -> grpc.Server:
    options = [
        ("grpc.so_reuseport", 0),  # a second host on the same port must fail, not share it
        ("grpc.max_receive_message_length", MESSAGE_MAX + _SLACK),
        ("grpc.max_send_message_length", limits.FRAME_MAX),
        ("grpc.max_concurrent_streams", workers),
        ("grpc.max_metadata_size", 16 * limits.KIB),
    ]
    return grpc.server(
        pool,
        options=options,
        maximum_concurrent_rpcs=workers,
        compression=grpc.Compression.NoCompression,
    )


def _read_evidence_request(data: bytes) -> tuple[bytes | None, bytes | None]:
    """Return (nonce, instance_config_digest); raises CasemateError(MALFORMED)."""
    try:
        request = pb.GetEvidenceRequest.FromString(data)
    except DecodeError:
        raise CasemateError(Code.MALFORMED, "not a GetEvidenceRequest") from None
    nonce = request.nonce if request.HasField("nonce") else None
    if nonce is not None and not limits.NONCE_MIN <= len(nonce) <= limits.NONCE_MAX:
        bounds = f"{limits.NONCE_MIN} to {limits.NONCE_MAX}"
        raise CasemateError(Code.MALFORMED, f"nonce of {len(nonce)} bytes, not {bounds}")
    wanted = request.instance_config_digest if request.HasField("instance_config_digest") else None
    if wanted is not None and len(wanted) != HASH_BYTES:
        raise CasemateError(Code.MALFORMED, f"instance_config_digest of {len(wanted)} bytes")
    return nonce, wanted


def _check_instance(wanted: bytes | None, present: bytes) -> None:
    if wanted is not None and wanted != present:
        raise CasemateError(Code.UNKNOWN_INSTANCE, "this host serves another instance")
