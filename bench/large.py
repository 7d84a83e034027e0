"""One tensor of a gibibyte, sealed in both directions: what each side holds beside it.

`make large`, or from the root of the repository and with a staged tree:
`python -m bench.large [--json] [--mib N]`. Needs some 4 GiB of free memory. Client and enclave are
the processes of a real deployment; what counts is how far their resident memory rises above what
the tensor itself takes. The model's worker looks at a question where it lies in the enclave's
memory; an answer exists in its memory once more, within `run_bytes`, which is not counted here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from casemate.attestation import ServiceLimits
from casemate.limits import GIB, MIB
from casemate.tensors import TensorSpec
from casemate_devkit.enclave_process import measure
from casemate_devkit.local import MODEL, LocalDeployment
from tests.support import onnx_bytes
from tests.support.attacker import genuine
from tests.support.deployment import DATA
from tests.support.resident import Peak
from tests.support.vendor_models import seal

if TYPE_CHECKING:
    from collections.abc import Iterator

EXTRA = 64 * MIB  # that each side may hold beside the tensor
TREE = Path(__file__).resolve().parents[1] / ".stage/tree"
LIMITS = ServiceLimits(
    sessions=4096,
    models=8,
    model_bytes=64 * MIB,
    request_bytes=8 * MIB,
    stream_bytes=2 * GIB,
    run_bytes=2 * GIB,
)
LARGEST, ZEROS = 2, 3


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor's way; memory in bytes beside the tensor itself."""

    name: str
    seconds: float
    client: int
    enclave: int

    @property
    def met(self) -> bool:
        """Whether both sides stayed within bounds."""
        return max(self.client, self.enclave) < EXTRA


@contextmanager
def deployed() -> Iterator[LocalDeployment]:
    """Start a deployment that has room for the tensor, with a model for each direction."""
    with (
        tempfile.TemporaryDirectory(prefix="cm-") as folder,
        LocalDeployment(Path(folder), TREE) as world,
    ):
        world.start_kms()
        world.agree(measure(TREE, "process"), LIMITS)
        small = world.seal_model(DATA.onnx)
        world.start_enclave()
        world.start_host([small], tapped=False)
        world.wait_until_serving()
        vector = (TensorSpec("x", "FP32", (0,)),), (TensorSpec("y", "FP32", (0,)),)
        count, one = (TensorSpec("n", "INT64", (1,)),), (TensorSpec("y", "FP32", ()),)
        for version, onnx, inputs, outputs in (
            (LARGEST, onnx_bytes.largest(), vector[0], one),
            (ZEROS, onnx_bytes.zeros(), count, vector[1]),
        ):
            facts = {"version": version, "inputs": inputs, "outputs": outputs}
            genuine(world).load(seal(world, Path(folder), onnx, **facts))
        yield world


def transfer(
    world: LocalDeployment, name: str, version: int, inputs: dict[str, np.ndarray], size: int
) -> Transfer:
    """Send ``inputs``; of the ``size`` bytes one side holds the tensor already."""
    if world.enclave is None:
        raise RuntimeError("no enclave")
    begun = time.perf_counter()
    with (
        world.client() as client,
        Peak(os.getpid()) as ours,
        Peak(int(world.enclave.ready["pid"])) as theirs,
        client.stream(MODEL, version=version) as stream,
    ):
        answer = stream.submit(inputs).result(600)
        received = sum(array.nbytes for array in answer.outputs.values())
    seconds = time.perf_counter() - begun
    return Transfer(name, seconds, ours.growth - received, theirs.growth - size)


def main() -> int:
    """Measure, print, and return 1 if a side held more than it may."""
    parser = argparse.ArgumentParser(description="Memory of a large tensor on its way.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--mib", type=int, default=1024, help="size of the tensor")
    arguments = parser.parse_args()
    size = arguments.mib * MIB
    with deployed() as world:
        x = np.ones(size // 4, np.float32)  # every page written: it is there before it is sent
        results = [transfer(world, "question", LARGEST, {"x": x}, size)]
        del x
        count = np.array([size // 4], np.int64)
        results.append(transfer(world, "answer", ZEROS, {"n": count}, size))
    report(results, arguments.mib, as_json=arguments.json)
    return 0 if all(result.met for result in results) else 1


def report(results: list[Transfer], mib: int, *, as_json: bool) -> None:
    """Print what was measured."""
    if as_json:
        facts = [
            {
                "name": result.name,
                "seconds": round(result.seconds, 2),
                "client_extra_mib": round(result.client / MIB, 1),
                "enclave_extra_mib": round(result.enclave / MIB, 1),
                "met": result.met,
            }
            for result in results
        ]
        print(json.dumps({"bench": "large", "mib": mib, "target_mib": EXTRA // MIB, "ways": facts}))
        return
    print(f"large: a tensor of {mib} MiB in a stream")
    for result in results:
        verdict = "met" if result.met else "MISSED"
        extra = f"client {result.client / MIB:5.1f}, enclave {result.enclave / MIB:5.1f} MiB"
        speed = mib / result.seconds
        print(f"  {result.name:<10} {result.seconds:6.1f} s ({speed:4.0f} MiB/s)")
        print(f"    beside the tensor: {extra}   below {EXTRA // MIB}: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
