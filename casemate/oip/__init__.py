"""Open Inference Protocol."""
