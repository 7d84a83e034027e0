"""KServe's Python model server, inference in a thread pool.

Runs in its own virtual environment: ``serve_kserve.py FOLDER PORT``.
"""

import asyncio
import json
import logging
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kserve
import kserve.protocol.grpc.server as grpc_side
import onnxruntime
import uvicorn
from kserve.protocol.infer_type import InferOutput, InferResponse

GENUINE = grpc_side.aio.server
THREADS = 2
POOL = ThreadPoolExecutor(THREADS)


def loopback_server(*arguments, **options):
    """KServe listens on every interface, without a setting; a bench has no business there."""
    server = GENUINE(*arguments, **options)
    bind = server.add_insecure_port
    server.add_insecure_port = lambda address: bind(address.replace("[::]", "127.0.0.1"))
    return server


class LoopbackConfig(uvicorn.Config):
    """The same for its HTTP side."""

    def __init__(self, app, **options):
        super().__init__(app, **{**options, "host": "127.0.0.1"})


grpc_side.aio = types.SimpleNamespace(server=loopback_server)
uvicorn.Config = LoopbackConfig


class OnnxModel(kserve.Model):
    """One model; onnxruntime lets go of the interpreter's lock: two threads keep two cores."""

    def __init__(self, name, path, outputs):
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options)
        self._outputs = outputs
        self.ready = True

    def load(self):
        return True

    async def predict(self, payload, headers=None, response_headers=None):
        inputs = {each.name: each.as_numpy() for each in payload.inputs}
        names = list(self._outputs)
        loop = asyncio.get_running_loop()
        values = await loop.run_in_executor(POOL, self._session.run, names, inputs)
        outputs = []
        for name, value in zip(names, values, strict=True):
            output = InferOutput(name, list(value.shape), self._outputs[name][0])
            output.set_data_from_numpy(value, binary_data=True)
            outputs.append(output)
        return InferResponse(payload.id or "", self.name, outputs)


def main():
    """Serve every model of the folder."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    facts = json.loads((folder / "models.json").read_text())
    models = [OnnxModel(name, folder / f"{name}.onnx", f["outputs"]) for name, f in facts.items()]
    server = kserve.ModelServer(
        http_port=port + 1,
        grpc_port=port,
        enable_grpc=True,
        enable_docs_url=False,
        access_log_format=None,
        enable_latency_logging=False,
    )
    logging.getLogger("kserve").setLevel(logging.WARNING)  # it writes a line for each request
    server.start(models)


if __name__ == "__main__":
    main()
