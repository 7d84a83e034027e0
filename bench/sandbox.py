"""What the process form's walls cost: starting the enclave, and each request.

Run by `make bench`, from the root of the repository: `python -m bench.sandbox [--json]`. Both sides
run the same staged tree; on one of them the enclave's own confinement is left out and it starts
without namespaces. They run side by side and take turns, so that a slow moment hits both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.channel import connect
from casemate.envelope.sealed_message import encode_sealed
from casemate.frames import FrameType, exchange
from casemate_devkit.enclave_process import EnclaveProcess, measure
from casemate_devkit.local import LocalDeployment
from casemate_devkit.staging.files import link_tree
from tests.support.attacker import genuine, start_session
from tests.support.deployment import DATA

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STARTS = 9
PAIRS = 7
BLOCKS = 10
REQUESTS = 100  # in a block
START_TARGET_S = 0.3  # that the walls may add
THROUGHPUT_TARGET = 0.97

_CONFINEMENT = "app/casemate_enclave/sandbox/__init__.py"
_NONE = """

def confine_files(*_, **__):
    return 7


def confine_calls(_):
    return True
"""


@contextlib.contextmanager
def unconfined(tree: Path) -> Iterator[Path]:
    """Make a copy of ``tree`` whose enclave does not confine itself."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=tree.parent) as folder:
        copy = Path(folder) / "tree"
        link_tree(tree, copy)
        source = (copy / _CONFINEMENT).read_text(encoding="utf-8")
        (copy / _CONFINEMENT).unlink()  # a link: the staged tree's own stays as it is
        (copy / _CONFINEMENT).write_text(source + _NONE, encoding="utf-8")
        yield copy


def start_s(tree: Path, *, walls: bool) -> float:
    """Seconds from the launcher's start of the enclave until it accepts a connection."""
    with tempfile.TemporaryDirectory(prefix="cm-") as folder:
        base = Path(folder)
        enclave = EnclaveProcess(
            tree, base / "pki", base / "run", unsafe_no_namespaces=not walls, stderr=-3
        )
        begun = time.perf_counter()
        with enclave:
            while not (base / "run" / "enclave.sock").exists():
                if not enclave.running():
                    raise SystemExit("the enclave ended")
                time.sleep(0.001)
            return time.perf_counter() - begun


class Side:
    """One deployment, and a session to its enclave."""

    def __init__(self, base: Path, tree: Path, *, walls: bool) -> None:
        self.world = LocalDeployment(base, tree)
        form, options = (
            ("process", ()) if walls else ("unsafe-process", ("--unsafe-no-namespaces",))
        )
        self.world.start_kms()
        self.world.agree(measure(tree, form))
        sealed = self.world.seal_model(DATA.onnx)
        self.launcher = self.world.start_enclave(None, *options)
        self.world.start_host([sealed], tapped=False)
        self.world.wait_until_serving()
        self.session = start_session(self.world, lifetime_ms=3_000_000)

    def cpu_s(self) -> float:
        """Processor time that the enclave's threads have used."""
        tasks = Path(f"/proc/{self.launcher.ready['pid']}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def block(self) -> tuple[float, float]:
        """Requests a second, by the clock and by the enclave's processor time."""
        calls = [self.session.seal() for _ in range(REQUESTS)]
        frames = [b"".join(encode_sealed(call.header, call.ciphertext)) for call in calls]
        with connect(genuine(self.world).address, 30) as channel:
            exchange(channel, FrameType.HEALTH)
            cpu, begun = self.cpu_s(), time.perf_counter()
            for frame in frames:
                exchange(channel, FrameType.REQUEST, frame)
            passed = time.perf_counter() - begun
            return REQUESTS / passed, REQUESTS / (self.cpu_s() - cpu)


@dataclass(frozen=True, slots=True)
class Result:
    """Medians; a ratio is that of walls to none."""

    start_with_s: float
    start_without_s: float
    per_second_with: float
    per_second_without: float
    ratio: float
    ratio_of_processor_time: float

    @property
    def met(self) -> bool:
        """Whether both targets are kept."""
        added = self.start_with_s - self.start_without_s
        return added <= START_TARGET_S and self.ratio >= THROUGHPUT_TARGET


def run(tree: Path, starts: int, pairs: int) -> Result:
    """Measure both; takes some minutes."""
    with unconfined(tree) as bare:
        walled, free = [], []
        for _ in range(starts):
            walled.append(start_s(tree, walls=True))
            free.append(start_s(bare, walls=False))
        measured = [pair(tree, bare, swapped=bool(number % 2)) for number in range(pairs)]
    return Result(
        statistics.median(walled),
        statistics.median(free),
        *(statistics.median(column) for column in zip(*measured, strict=True)),
    )


def pair(tree: Path, bare: Path, *, swapped: bool) -> tuple[float, float, float, float]:
    """Medians of one pair of enclaves: requests a second with and without walls, and both ratios.

    Where a process happens to lie in memory makes it a few percent faster or slower for its whole
    life, so what counts is the median over pairs of fresh ones.
    """
    with contextlib.ExitStack() as stack:
        sides = {}
        for walls in (False, True) if swapped else (True, False):
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cm-")))
            sides[walls] = Side(base, tree if walls else bare, walls=walls)
            stack.enter_context(sides[walls].world)
            sides[walls].block()
        done: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for number in range(BLOCKS):
            for walls in (True, False) if number % 2 else (False, True):
                done[walls].append(sides[walls].block())
    both = list(zip(done[True], done[False], strict=True))
    return (
        statistics.median(speed for speed, _ in done[True]),
        statistics.median(speed for speed, _ in done[False]),
        statistics.median(one[0] / other[0] for one, other in both),
        statistics.median(one[1] / other[1] for one, other in both),
    )


def show(result: Result) -> None:
    """Print it for people."""
    added = result.start_with_s - result.start_without_s
    print("sandbox: the process form's walls, and the same enclave without any")
    print(
        f"  start        {result.start_with_s:.3f} s with, {result.start_without_s:.3f} s without"
    )
    print(f"  added        {added:+.3f} s   at most {START_TARGET_S:g}")
    print(
        f"  requests/s   {result.per_second_with:.0f} with, {result.per_second_without:.0f} without"
    )
    print(f"  ratio        {result.ratio:.3f}   at least {THROUGHPUT_TARGET:g}")
    print(f"  ratio, by the enclave's processor time   {result.ratio_of_processor_time:.3f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="bench.sandbox")
    default = os.environ.get("CASEMATE_TREE", Path(__file__).parents[1] / ".stage/tree")
    parser.add_argument("--tree", type=Path, default=Path(default))
    parser.add_argument("--starts", type=int, default=STARTS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = run(options.tree.resolve(), options.starts, options.pairs)
    if options.json:
        facts = {name: round(getattr(result, name), 4) for name in Result.__slots__}
        print(json.dumps({"bench": "sandbox", **facts, "met": result.met}))
    else:
        show(result)
    return 0 if result.met else 1


if __name__ == "__main__":
    raise SystemExit(main())
