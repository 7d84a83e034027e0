"""The part of ONNX that the client reads: a model's inputs and outputs (generated)."""
