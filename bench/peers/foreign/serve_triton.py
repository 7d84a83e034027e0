"""Triton through PyTriton: onnxruntime in its Python backend, two instances, dynamic batcher.

Runs in its own virtual environment: ``serve_triton.py FOLDER PORT``.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.models.model import Model
from pytriton.triton import Triton, TritonConfig

TYPES = {"FP32": np.float32, "INT64": np.int64}
INSTANCES = 2
GENUINE = Model.get_proxy_model_files
PATIENCE = {  # on a busy machine a second is short, and a socket is there before it listens
    b"timeout_s: float = 1.0": b"timeout_s: float = 60.0",
    b"timeout=1.0": b"timeout=60.0",
    b"_STARTUP_TIMEOUT_S = 1.0": b"_STARTUP_TIMEOUT_S = 60.0",
    b"        sock.connect(socket_path.as_posix())\n": (
        b"        while sock.connect_ex(socket_path.as_posix()):\n            time.sleep(0.01)\n"
    ),
}


def patient_files(model):
    """Return what PyTriton has Triton run, which waits longer for its start."""
    files = GENUINE(model)
    name = next(name for name in files if name.endswith("/communication.py"))
    for theirs, ours in PATIENCE.items():
        if theirs not in files[name]:
            raise SystemExit(f"another PyTriton: {theirs!r} is not in {name}")
        files[name] = files[name].replace(theirs, ours)
    return files


Model.get_proxy_model_files = patient_files


def instance(path, outputs):
    """One onnxruntime session with one thread: there are as many instances as cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)

    @batch
    def infer(**inputs):
        return dict(zip(outputs, session.run(outputs, inputs), strict=True))

    return infer


def main():
    """Serve every model of the folder until it is told to stop."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    config = TritonConfig(
        grpc_port=port,
        grpc_address="127.0.0.1",
        allow_http=False,
        allow_metrics=False,
        log_verbose=0,
    )
    triton = Triton(config=config)
    for name, facts in json.loads((folder / "models.json").read_text()).items():
        outputs = list(facts["outputs"])
        triton.bind(
            model_name=name,
            infer_func=[instance(folder / f"{name}.onnx", outputs) for _ in range(INSTANCES)],
            inputs=[Tensor(name=n, dtype=np.float32, shape=s) for n, s in facts["inputs"].items()],
            outputs=[
                Tensor(name=n, dtype=TYPES[t], shape=s or (1,))
                for n, (t, s) in facts["outputs"].items()
            ],
            config=ModelConfig(
                max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=100)
            ),
        )
    triton.run()  # only now: models that are bound to a running server race its handshake
    print(json.dumps({"pid": os.getpid()}), flush=True)
    triton.serve()


if __name__ == "__main__":
    main()
