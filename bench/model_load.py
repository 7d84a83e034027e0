"""What it costs that a model is sealed, when it is loaded: the whole way, beside onnxruntime alone.

Plain: onnxruntime, set up as the enclave does it, is given the path of a file in a process of its
own, forked from one that has imported it: as the enclave's workers are, and the quickest way that
there is to load a plain file. Sealed: what `casemate seal-model` makes of the same file, weights
aligned. The host's own code sends it to a real enclave, which asks the KMS double for its key,
opens and verifies the contents as they arrive and has a worker make them runnable; then it is
unloaded, as the plain one ends with its process. What a load costs once, whatever the model's size
- evidence for KMS, its answer, a worker, an entry in the log - is measured with a model of a
kilobyte and stated by itself: over a network it is what the network makes of it. Target: the rest
at most 1.3 times the plain load.

Run by `make bench`, from the root of the repository and with a staged tree:
`python -m bench.model_load [--json]`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime

import numpy as np
import onnxruntime

from bench.rounds import Ratio, measure, median_of, report
from casemate import limits
from casemate.client.onnx_alignment import aligned
from casemate.tensors import TensorSpec
from casemate_devkit.local import LIMITS, MODEL
from casemate_enclave.runtime import session_options
from casemate_host.control import Control
from tests.support import onnx_bytes
from tests.support.attacker import genuine
from tests.support.deployment import DATA, prepared
from tests.support.vendor_models import seal

if TYPE_CHECKING:
    from casemate_devkit.local import LocalDeployment

TREE: Final = Path(__file__).resolve().parents[1] / ".stage/tree"
TARGET: Final = 1.3
TINY: Final = 100  # versions
SIZED: Final = 101


@dataclass(frozen=True, slots=True)
class Size:
    """A model of ``layers`` products with matrices of ``width``; measured in so many rounds."""

    name: str
    width: int
    layers: int
    rounds: int

    @property
    def output(self) -> str:
        """The name of its output."""
        return f"h{self.layers}"


SIZES: Final = (
    Size("4 MiB", 1024, 1, 15),
    Size("24 MiB", 1024, 6, 15),
    Size("64 MiB", 1024, 16, 11),
    Size("256 MiB", 1024, 64, 7),
    Size("4,000 operators, 1 MiB", 8, 2000, 15),  # onnxruntime's own work dominates
)


def content(size: Size) -> bytes:
    """The ONNX file; every weight another one, since onnxruntime keeps equal tensors once."""
    random = np.random.default_rng(size.layers)
    square, row = (size.width, size.width), ("n", size.width)
    nodes, weights = [], []
    for layer in range(size.layers):
        source, target = f"h{layer}" if layer else "x", f"h{layer + 1}"
        nodes.append(onnx_bytes.node("MatMul", (source, f"w{layer}"), (f"m{layer}",)))
        nodes.append(onnx_bytes.node("Relu", (f"m{layer}",), (target,)))
        raw = random.standard_normal(square, np.float32).tobytes()
        weights.append(onnx_bytes.tensor(f"w{layer}", onnx_bytes.FLOAT, square, raw))
    ends = (onnx_bytes.value_info(name, onnx_bytes.FLOAT, row) for name in ("x", size.output))
    x, y = ((end,) for end in ends)
    return onnx_bytes.model(onnx_bytes.graph(tuple(nodes), x, y, tuple(weights)))


class Loads:
    """One model, plain and sealed, and what loads each."""

    def __init__(self, world: LocalDeployment, folder: Path, size: Size) -> None:
        self._plain, self._sealed = folder / "plain.onnx", folder / "sized.sealed"
        onnx = content(size)
        self._plain.write_bytes(onnx)
        names = ("x", size.output)
        inputs, outputs = ((TensorSpec(name, "FP32", (0, size.width)),) for name in names)
        with aligned(self._plain, folder) as source:  # as casemate seal-model does
            facts = {"version": SIZED, "inputs": inputs, "outputs": outputs}
            self._sealed.write_bytes(seal(world, folder, source.read_bytes(), **facts))
        self._tiny = folder / "tiny.sealed"
        self._tiny.write_bytes(seal(world, folder, onnx_bytes.linear(), version=TINY))
        self._control = Control(genuine(world).address)

    def plain(self) -> None:
        """Have a new process make the file runnable."""
        if (process := os.fork()) == 0:
            onnxruntime.InferenceSession(
                str(self._plain), session_options((), 1), providers=["CPUExecutionProvider"]
            )
            os._exit(0)
        if os.waitpid(process, 0)[1]:
            raise RuntimeError("the plain load failed")

    def sealed(self) -> None:
        """Have the enclave load the sealed file."""
        self._load(self._sealed, SIZED)

    def once(self) -> None:
        """Have the enclave load next to nothing."""
        self._load(self._tiny, TINY)

    def _load(self, file: Path, version: int) -> None:
        self._control.load(file)
        self._control.unload(MODEL, version)


def measured(world: LocalDeployment, folder: Path, size: Size) -> int:
    """Measure and print one size; 1 if its target is missed."""
    loads = Loads(world, folder, size)
    cases = {"plain": loads.plain, "sealed": loads.sealed, "once": loads.once}
    times = measure(cases, size.rounds)
    rest = [one - once for one, once in zip(times["sealed"], times["once"], strict=True)]
    value = median_of(rest, times["plain"])
    return report(
        f"model load: {size.name}", times, [Ratio("(sealed - once) / plain", value, TARGET)]
    )


def main() -> int:
    """Measure, print, and return 1 if a target is missed."""
    bounds = replace(LIMITS, model_bytes=512 * limits.MIB, memory_bytes=2 * limits.GIB)
    with (
        tempfile.TemporaryDirectory(prefix="cm-") as folder,
        prepared(Path(folder), TREE, bounds) as world,
        tempfile.TemporaryDirectory(prefix="cm-") as files,
    ):
        world.start_enclave()
        world.start_host([world.seal_model(DATA.onnx)], tapped=False)
        world.wait_until_serving()
        return max([measured(world, Path(files), size) for size in SIZES])


if __name__ == "__main__":
    sys.exit(main())
