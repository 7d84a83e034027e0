"""Beside the launcher's probe: the enclave's libraries, imported and run inside the isolated tree."""

# ruff: noqa: PLC0415, INP001

import os

MODEL = "__MODEL__"


def run():
    os.environ.update({"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"})
    import botocore.session
    import google.protobuf
    import numpy
    import onnxruntime
    from cryptography.hazmat.primitives.asymmetric import ec

    ec.generate_private_key(ec.SECP384R1())
    session = botocore.session.get_session()
    session.create_client(
        "kms", region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    threads = len(os.listdir("/proc/self/task"))
    with open("/app/model.onnx", "rb") as file:
        model = onnxruntime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])
    first = model.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in first.shape]
    model.run(None, {first.name: numpy.zeros(shape, "float32")})
    return [threads, google.protobuf.__version__ > ""]
