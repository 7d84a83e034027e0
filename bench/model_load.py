"""What it costs that a model is sealed, when it is loaded: the whole way, beside onnxruntime alone.

Plain: a file read and handed to onnxruntime, as the enclave sets it up, in this process. Sealed:
the host's own code sends the sealed file to a real enclave, which asks the KMS double for its key,
opens and verifies the contents as they arrive and makes them runnable; then it is unloaded, as the
plain one is dropped. What a load costs once, whatever the model's size - evidence for KMS, its
answer, an entry in the log - is measured with a model of a kilobyte and stated by itself: over a
network it is what the network makes of it. Target: the rest at most 1.3 times the plain load.

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

from bench.rounds import Ratio, measure, median_of, report
from casemate import limits
from casemate.sealed_model.header import PREFIX_BYTES, ModelHeader, head_bytes
from casemate.tensors import TensorSpec
from casemate_devkit.local import LIMITS, MODEL
from casemate_enclave.runtime import OnnxRuntime
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


SIZES: Final = (
    Size("4 MiB", 1024, 1, 15),
    Size("24 MiB", 1024, 6, 15),
    Size("64 MiB", 1024, 16, 11),
    Size("256 MiB", 1024, 64, 7),
    Size("4,000 operators, 1 MiB", 8, 2000, 15),  # onnxruntime's own work dominates
)


class Loads:
    """One model, plain and sealed, and what loads each."""

    def __init__(self, world: LocalDeployment, folder: Path, size: Size) -> None:
        self._plain, self._sealed = folder / "plain.onnx", folder / "sized.sealed"
        content = onnx_bytes.mlp(size.width, size.layers)
        self._plain.write_bytes(content)
        inputs, outputs = ((TensorSpec(name, "FP32", (0, size.width)),) for name in "xy")
        sealed = seal(world, folder, content, version=SIZED, inputs=inputs, outputs=outputs)
        self._sealed.write_bytes(sealed)
        header = sealed[PREFIX_BYTES : head_bytes(sealed) - 68]
        self._header = ModelHeader.parse(header)
        self._tiny = folder / "tiny.sealed"
        self._tiny.write_bytes(seal(world, folder, onnx_bytes.linear(), version=TINY))
        self._control = Control(genuine(world).address)
        self._runtime = OnnxRuntime(["CPUExecutionProvider"], run_bytes=limits.GIB, threads=1)

    def plain(self) -> None:
        """Read the file and make it runnable."""
        self._runtime.load({"model.onnx": self._plain.read_bytes()}, self._header)

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
