"""The same stack without the seal and without the enclave's hop: what privacy is measured against.

The host's gRPC server, the enclave's registry, runtime and batcher, the same tensor encoding; the
method's name is the model's. ``python -m bench.peers.plain_server FOLDER`` prints one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

import grpc

from bench.peers.models import MODELS, header_of
from casemate import limits
from casemate.attestation import ServiceLimits
from casemate.sealed_model import ModelContents
from casemate.tensors import to_response
from casemate_enclave.clock import AttestedClock, boottime
from casemate_enclave.events import Journal
from casemate_enclave.identity import MeasurementLog
from casemate_enclave.registry import ModelRegistry
from casemate_enclave.runtime import OnnxRuntime
from casemate_enclave.steps import Step
from casemate_kms.models import OpenedModel

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = "casemate.bench.Plain"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def registry(folder: Path) -> ModelRegistry:
    """Every model of the folder, loaded and scheduled as an enclave does it."""
    clock = AttestedClock(lambda: time.time_ns() // 1_000_000, boottime)
    clock.refresh()
    bounds = ServiceLimits(1024, len(MODELS), 64 * limits.MIB, 8 * limits.MIB)
    runtime = OnnxRuntime(
        ["CPUExecutionProvider"], run_bytes=bounds.run_bytes, threads=bounds.threads
    )
    journal = Journal()
    models = ModelRegistry(
        *(runtime, MeasurementLog(), clock, bounds),
        queued=lambda: journal.timed(Step.QUEUE),
        waited=journal.waited,
    )
    for name in MODELS:
        content = (folder / f"{name}.onnx").read_bytes()
        header = header_of(name, content)
        with models.loading() as loading:
            loading.admit(header)
            contents = ModelContents.of({f"{name}.onnx": content})
            loading.serve(OpenedModel(header, contents, header.digest))
    return models


def method(models: ModelRegistry, name: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """Answer a ``ModelInferRequest`` with a ``ModelInferResponse``."""

    def infer(message: bytes, context: grpc.ServicerContext) -> bytes:
        return run(
            models, name, message, context.time_remaining() or limits.FRAME_BUDGET_DEFAULT / 1000
        )

    return infer


def run(models: ModelRegistry, name: str, message: bytes, remaining_s: float) -> bytes:
    """Return the ``ModelInferResponse`` to one ``ModelInferRequest``."""
    model = models.find(name, None)
    header = model.header
    request = model.requests.read(message)
    deadline = time.monotonic() + remaining_s
    outputs = model.loaded.run(request.inputs, request.outputs, deadline)
    answer: bytes = to_response(outputs, header.name, header.version, request.id)
    return answer


def main() -> int:
    """Serve until the standard input ends."""
    models = registry(Path(sys.argv[1]))
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(method(models, name)) for name in MODELS
    }
    server = grpc.server(
        ThreadPoolExecutor(limits.UNARY_DEFAULT),
        options=_OPTIONS,
        compression=grpc.Compression.NoCompression,
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(json.dumps({"target": f"127.0.0.1:{port}"}), flush=True)
    sys.stdin.read()
    server.stop(1).wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
