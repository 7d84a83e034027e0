"""A gRPC front for the in-process enclave of ``enclave_bench``: relays, and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import grpc
from grpc_status import rpc_status

from casemate.errors import FrameError
from casemate.frames import FrameType
from casemate.v1.confidential_inference_pb2 import GetEvidenceRequest
from tests.support.service import status_of

if TYPE_CHECKING:
    from tests.support.enclave_bench import Bench


class Front:
    """Listens on loopback at ``target``."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._server = grpc.server(ThreadPoolExecutor(8))
        methods = {"GetEvidence": self._get_evidence, "Infer": self._infer}
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
        }
        service = grpc.method_handlers_generic_handler(
            "casemate.v1.ConfidentialInference", handlers
        )
        self._server.add_generic_rpc_handlers([service])
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def _get_evidence(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        nonce = GetEvidenceRequest.FromString(request).nonce
        return self._relay(FrameType.EVIDENCE, nonce, context)

    def _infer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return self._relay(FrameType.REQUEST, request, context)

    def _relay(self, kind: FrameType, payload: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return self._bench.ask(kind, payload)
        except FrameError as error:
            context.abort_with_status(rpc_status.to_status(status_of(error)))
            raise

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
