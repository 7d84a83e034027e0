"""What joined runs and many sessions cost, over a real host and a real enclave.

Run by `make bench`, from the root of the repository and with a staged tree:
`python -m bench.serving [--json]`.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.rounds import Ratio, measure, ratio, report
from casemate.envelope.sealed_message import encode_sealed
from casemate.frames import FrameType
from casemate.sealed_model import Serving
from casemate.tensors import TensorSpec, to_request
from casemate_devkit.local import MODEL
from casemate_host.call import Call
from casemate_host.relay import Relay
from tests.support import onnx_bytes
from tests.support.attacker import genuine, start_session
from tests.support.deployment import DATA, prepared
from tests.support.vendor_models import seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.client import Client
    from casemate_devkit.local import LocalDeployment

TREE = Path(__file__).resolve().parents[1] / ".stage/tree"
IN_FLIGHT = 32
WIDTH, LAYERS = 1024, 6  # about one millisecond
ROUNDS, WARM_UP = 15, 3  # as `measure` warms up
TURNS = 10  # requests of each of the 32 in one case
SESSIONS = 1000
SESSIONS_MIB = 10
JOINED, ALONE = 60, 61  # versions
ENDS = (TensorSpec("x", "FP32", (0, WIDTH)),), (TensorSpec("y", "FP32", (0, WIDTH)),)


def main() -> int:
    """Measure, print, and return 1 if a target is missed."""
    with (
        tempfile.TemporaryDirectory(prefix="cm-") as folder,
        prepared(Path(folder), TREE) as world,
    ):
        world.start_enclave()
        world.start_host([world.seal_model(DATA.onnx)], tapped=False)
        world.wait_until_serving()
        with world.client() as client, tempfile.TemporaryDirectory() as scratch:
            return max(
                joined_runs(world, client, Path(scratch)),
                many_sessions(world),
            )


@contextlib.contextmanager
def loaded(world: LocalDeployment, files: dict[int, bytes]) -> Iterator[None]:
    """Serve sealed models by version for a while."""
    enclave = genuine(world)
    for content in files.values():
        enclave.load(content)
    try:
        yield
    finally:
        for version in files:
            enclave.unload(MODEL, version)


class Crowd:
    """32 callers of a host's relay, each always asking, over one connection.

    Requests are sealed before and answers are not opened: timed are the relay and the enclave.
    """

    def __init__(self, world: LocalDeployment, x: np.ndarray) -> None:
        self._world = world
        self._message = to_request({"x": x})
        self._pool = ThreadPoolExecutor(IN_FLIGHT)
        self._relay = Relay(genuine(world).address, IN_FLIGHT, lambda: None)
        self._sealed: dict[int, list[list[bytes]]] = {}

    def prepare(self, version: int, rounds: int) -> None:
        """Seal what ``rounds`` calls of ``ask`` send, in a session of their own."""
        session = start_session(self._world, lifetime_ms=600_000)

        def sealed() -> bytes:
            call = session.seal(self._message, version=version)
            return b"".join(encode_sealed(call.header, call.ciphertext))

        count = IN_FLIGHT * TURNS
        self._sealed[version] = [[sealed() for _ in range(count)] for _ in range(rounds)]

    def ask(self, version: int) -> None:
        """Send one round's requests, 32 in flight, and await the answers."""
        requests = self._sealed[version].pop(0)  # in the order of their sequence
        shares = [requests[number::IN_FLIGHT] for number in range(IN_FLIGHT)]
        for done in self._pool.map(self._turns, shares):
            if done != TURNS:
                raise RuntimeError("a request was not answered")

    def _turns(self, requests: list[bytes]) -> int:
        answers = [self._relay.exchange(FrameType.REQUEST, one, Call(60)) for one in requests]
        return sum(len(answer) > 4 * WIDTH for answer in answers)

    def close(self) -> None:
        """Close the connection."""
        self._pool.shutdown()
        self._relay.close()


def joined_runs(world: LocalDeployment, client: Client, folder: Path) -> int:
    """A model of a millisecond, its requests joined and not: alone, and 32 at a time."""
    onnx = onnx_bytes.mlp(WIDTH, LAYERS)
    inputs, outputs = ENDS
    wanted = {JOINED: Serving(0, batch_rows=64), ALONE: Serving()}
    files = {
        version: seal(
            *(world, folder, onnx), version=version, inputs=inputs, outputs=outputs, serving=serving
        )
        for version, serving in wanted.items()
    }
    x = np.random.default_rng(1).standard_normal((1, WIDTH)).astype(np.float32)

    def ask(version: int) -> Callable[[], object]:
        return lambda: client.infer(f"{MODEL}:{version}", {"x": x}, timeout_s=60)

    crowd = Crowd(world, x)
    with loaded(world, files), contextlib.closing(crowd):
        idle = measure({"one at a time": ask(ALONE), "same, may join": ask(JOINED)}, 200)
        for version in (ALONE, JOINED):
            crowd.prepare(version, ROUNDS + WARM_UP)
        busy = measure(
            {
                "320 at 32 in flight": lambda: crowd.ask(ALONE),
                "same, joined": lambda: crowd.ask(JOINED),
            },
            ROUNDS,
        )
    targets = [
        ratio(idle, "same, may join", "one at a time", 1.05),
        ratio(busy, "same, joined", "320 at 32 in flight", 0.8),
    ]
    return report("joined runs of a 1 ms model", {**idle, **busy}, targets)


def many_sessions(world: LocalDeployment) -> int:
    """Memory of the enclave before and after 1,000 sessions that are not used again."""
    if world.enclave is None:
        raise RuntimeError("no enclave runs")
    enclave, pid = genuine(world), int(world.enclave.ready["pid"])
    evidence = start_session(world).evidence

    def open_sessions(count: int) -> None:
        for _ in range(count):
            # A stranger's: no listed caller may hold so many. No model runs for it.
            start_session(world, evidence=evidence, caller=None).ask(enclave)

    open_sessions(SESSIONS // 4)  # what is taken once
    before = resident_mib(pid)
    times = measure({"a new session": lambda: open_sessions(1)}, SESSIONS)
    grown = Ratio("MiB of 1,000 sessions", resident_mib(pid) - before, SESSIONS_MIB)
    return report("many sessions", times, [grown])


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(pid)


if __name__ == "__main__":
    sys.exit(main())
