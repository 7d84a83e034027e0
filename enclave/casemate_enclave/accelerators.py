"""Execution providers beside the processor's: what each is given, and how it is set up (SPEC 8.11).

What onnxruntime in the measured tree could run on decides what the spawner keeps for its workers;
what the measured configuration names decides which worker gets it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
OPENVINO: Final = "OpenVINOExecutionProvider"
# The part of the wheel without which onnxruntime names the provider and cannot use it.
_LIBRARIES: Final = {
    CUDA: "libonnxruntime_providers_cuda.so",
    TENSORRT: "libonnxruntime_providers_tensorrt.so",
    OPENVINO: "libonnxruntime_providers_openvino.so",
}
_ON_GPU: Final = frozenset({CUDA, TENSORRT})
# Operators whose outputs are as large as the values of their inputs say, not as their shapes.
_SIZED_BY_VALUES: Final = frozenset(
    {
        *("Compress", "ConstantOfShape", "Expand", "If", "Loop", "NonMaxSuppression", "NonZero"),
        *("OneHot", "Pad", "Range", "Resize", "Scan", "Slice", "Split", "Tile", "TopK", "Unique"),
        *("Upsample", "SequenceAt", "SplitToSequence", "StringSplit", "MaxUnpool", "RoiAlign"),
    }
)
_GPU_NODE: Final = re.compile(r"nvidia([0-9]+|ctl|-uvm)")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a worker is given beyond what every worker is.

    ``code``: it may load libraries of the tree and make machine code; ``gpu``: the devices of GPUs,
    and the calls that drive them.
    """

    code: bool = False
    gpu: bool = False

    @property
    def data_bytes(self) -> int:
        """Bytes that its process may allocate beside those of any worker."""
        return limits.WORKER_GPU_DATA if self.gpu else limits.WORKER_CODE_DATA if self.code else 0


NONE: Final = Needs()


def needs_of(providers: Iterable[str]) -> Needs:
    """Return what a worker with ``providers`` is given."""
    named = _LIBRARIES.keys() & set(providers)
    return Needs(code=bool(named), gpu=bool(named & _ON_GPU))


def offered() -> frozenset[str]:
    """The accelerators that the installed onnxruntime has; it is not imported for that."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return frozenset()
    libraries = Path(spec.origin).parent / "capi"
    return frozenset(name for name, file in _LIBRARIES.items() if (libraries / file).is_file())


def usable(available: Iterable[str]) -> list[str]:
    """Of the providers that onnxruntime names, those whose library is there."""
    there = offered()
    return [name for name in available if name in there or name not in _LIBRARIES]


def gpu_devices(folder: str = "/dev") -> list[str]:
    """The device nodes of GPUs, as far as this machine has some."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names
    except OSError:
        return []
    return [f"{folder}/{name}" for name in names if _GPU_NODE.fullmatch(name)]


def fixed(shapes: Iterable[Sequence[object]], operators: Iterable[str]) -> bool:
    """Whether a model's memory is known when it is loaded: what OpenVINO needs to be safe.

    When this provider's memory runs out in a run, that run is answered with the outputs of the one
    before it, or with what memory held, and not with an error (onnxruntime-openvino 1.24.1).
    ``operators`` are those it runs.
    """
    known = all(shape and all(isinstance(size, int) for size in shape) for shape in shapes)
    return known and not _SIZED_BY_VALUES.intersection(operators)


def prepare(onnxruntime: Any, providers: Iterable[str]) -> None:  # noqa: ANN401 - it has no types
    """Load the libraries of ``providers`` once for all workers; touches no device."""
    if CUDA in providers:
        os.environ["CUDA_CACHE_DISABLE"] = "1"  # it would write files
        onnxruntime.preload_dlls()


def settings_of(
    providers: Sequence[str], *, threads: int, run_bytes: int, contents: int
) -> list[tuple[str, dict[str, str]]]:
    """How onnxruntime sets up each provider for one model of ``contents`` bytes."""
    settings = {
        # What the model says, not the shorter datatypes that a processor is quicker with.
        OPENVINO: {"device_type": "CPU", "precision": "ACCURACY", "num_of_threads": str(threads)},
        CUDA: {
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "gpu_mem_limit": str(contents * limits.MODEL_LOAD_FACTOR + run_bytes),
            "use_tf32": "0",
        },
    }
    return [(name, settings.get(name, {})) for name in providers]
