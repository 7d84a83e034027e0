"""What a request costs under a cached data key from KMS, beside one sealed to the enclave's key.

The deployment of the demonstration, every process real. Run by `make bench`, from the root of the
repository and with a staged tree: `python -m bench.key_modes [--json]`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.rounds import measure, ratio, report
from casemate.client.transport import HostConnection
from casemate_devkit.local import MODEL
from tests.support.deployment import DATA, prepared

ROUNDS = 400
TARGET = 1.1
TREE = Path(__file__).resolve().parents[1] / ".stage/tree"


def main() -> int:
    """Measure, print, and return 1 if the target is missed."""
    rows = {"features": np.ascontiguousarray(DATA.features[:4])}
    with (
        tempfile.TemporaryDirectory(prefix="cm-") as folder,
        prepared(Path(folder), TREE) as world,
    ):
        sealed = world.seal_model(DATA.onnx)
        world.start_enclave()
        world.start_host([sealed], tapped=False)  # a tap would add its own time to both
        world.wait_until_serving()
        with (
            HostConnection(world.target) as host,
            world.client() as hpke,
            world.client(kms=True) as kms,
        ):
            host.get_evidence(None, 10)
            cases = {
                "hpke session": lambda: hpke.infer(MODEL, rows),
                "kms session, key cached": lambda: kms.infer(MODEL, rows),
            }
            times = measure(cases, ROUNDS)
    target = ratio(times, "kms session, key cached", "hpke session", TARGET)
    return report("key modes", times, [target])


if __name__ == "__main__":
    sys.exit(main())
