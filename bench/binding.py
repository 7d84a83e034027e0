"""What `run` costs beside onnxruntime's IO binding, on the processor (docs/decisions/0013).

`python -m bench.binding [--json]`, from the root of the repository.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime

from bench.rounds import measure, ratio, report
from tests.support import onnx_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS: Final = 400
TARGET: Final = 1.0  # where binding is cheaper, the decision is to be made again
ELEMENTS: Final = {"1 KiB": 256, "512 KiB": 131_072, "8 MiB": 2_097_152}  # FP32, in and out


def session() -> Any:  # noqa: ANN401 - onnxruntime has no types
    """Return a model that costs little beside its tensors, with one thread as in the enclave."""
    x, y = (onnx_bytes.value_info(name, onnx_bytes.FLOAT, (1, "n")) for name in "xy")
    node = onnx_bytes.node("Relu", ("x",), ("y",))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = onnx_bytes.model(onnx_bytes.graph((node,), (x,), (y,)))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def cases(elements: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the two ways to numpy's answer, for a tensor of so many elements."""
    model, x = session(), np.ones((1, elements), np.float32)
    binding = model.io_binding()

    def bound() -> object:
        binding.bind_cpu_input("x", x)
        binding.bind_output("y")
        model.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    return lambda: model.run(["y"], {"x": x}), bound


def main() -> int:
    """Measure, print, and return 1 if `run` costs more than binding."""
    times: dict[str, list[float]] = {}
    for size, elements in ELEMENTS.items():  # apart, as a large tensor empties the caches
        run, binding = cases(elements)
        work = {f"run, {size}": run, f"binding, {size}": binding}
        times |= measure(work, ROUNDS, clock=time.thread_time_ns)
    ratios = [ratio(times, f"run, {size}", f"binding, {size}", TARGET) for size in ELEMENTS]
    return report("IO binding", times, ratios)


if __name__ == "__main__":
    sys.exit(main())
