"""Optimise an ONNX model before it is sealed, as far as that holds on every machine.

Constant folding and the removal of what has no effect: standard operators in, standard operators
out. What depends on the processor is done inside the enclave (docs/decisions).
"""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from collections.abc import Iterator

_SILENT = 4


@contextlib.contextmanager
def optimised(model: Path) -> Iterator[Path]:
    """Yield a copy of ``model`` of the same name, optimised, which goes away afterwards.

    Raises CasemateError: INVALID_ARGUMENT if onnxruntime is not installed or refuses the model.
    """
    runtime = _runtime()
    with TemporaryDirectory(prefix="casemate-") as folder:
        output = Path(folder) / model.name
        options = runtime.SessionOptions()
        options.log_severity_level = _SILENT
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(output)
        try:
            runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001 - its exceptions share no base
            detail = f"{model}: onnxruntime refuses it, so it cannot be optimised"
            raise CasemateError(Code.INVALID_ARGUMENT, detail) from None
        yield output


def _runtime() -> Any:  # noqa: ANN401 - it carries no type information
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import, or it is too late
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        detail = "to optimise a model onnxruntime must be installed: pip install onnxruntime"
        raise CasemateError(Code.INVALID_ARGUMENT, detail) from None
