import os

# As enclave/boot.py does, and before any test imports onnxruntime.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
