"""Whether a request costs the same however many sessions are live and models are loaded.

Three enclaves side by side take turns: one with one session and one model; one with ten thousand
live sessions, of which each request takes another; one with fifty loaded models, of which one is
asked. In a fourth turn all fifty are asked, one after the other: what that costs is reported and
has no target, since each model is a process, and a process that was not asked for a while finds
the processor's caches full of others'. Requests are sealed before and answers opened after: what is
timed is the enclave, over its own socket, and the processor time of its processes. Where a process
happens to lie in memory makes it a few percent faster or slower for its whole life, so all of it is
done twice.

Run by `make bench`, from the root of the repository and with a staged tree:
`python -m bench.flat [--json]`. Takes some minutes: sessions are made one by one.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.peers.processor import family
from bench.rounds import Ratio, median_of, report
from casemate.channel import connect
from casemate.client.onnx_signature import read_signature
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.errors import Code
from casemate.frames import FrameType, exchange
from casemate_devkit.local import LIMITS
from tests.support.attacker import genuine, start_session, verified
from tests.support.deployment import DATA, prepared
from tests.support.vendor_models import seal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_devkit.local import LocalDeployment

TREE: Final = Path(__file__).resolve().parents[1] / ".stage/tree"
SESSIONS: Final = 10_000
MODELS: Final = 50
TARGET: Final = 1.1
TIMES: Final = 2  # each with fresh enclaves
BLOCKS, REQUESTS = 20, 100
HOUR_MS: Final = 3_000_000
ONE, MANY_SESSIONS = "1 session, 1 model", "10,000 sessions"
ONE_OF_MANY, EACH_OF_MANY = "1 of 50 models", "each of 50 models"
_ORDER: Final = (ONE, MANY_SESSIONS, ONE_OF_MANY, EACH_OF_MANY)
_TARGETS: Final = {MANY_SESSIONS: TARGET, ONE_OF_MANY: TARGET, EACH_OF_MANY: None}
# A caller may hold an eighth of the table (SPEC 6.8).
_LIMITS: Final = replace(LIMITS, sessions=8 * SESSIONS, models=MODELS)


class Side:
    """Sessions that take turns in asking an enclave, and the models that they ask in turn."""

    def __init__(self, world: LocalDeployment, sessions: int, models: int) -> None:
        self._world = world
        if world.enclave is None:
            raise RuntimeError("no enclave")
        self._pid = int(world.enclave.ready["pid"])
        evidence = verified(world)
        made = [
            start_session(world, evidence=evidence, lifetime_ms=HOUR_MS) for _ in range(sessions)
        ]
        self._turns = zip(
            itertools.cycle(made), itertools.cycle(range(1, models + 1)), strict=False
        )
        for _ in range(0, max(sessions, models), REQUESTS):
            self.block()  # every session becomes a live one, every model has run

    def block(self) -> tuple[float, float]:
        """Microseconds of one request, by the clock and by the enclave's processor time."""
        turns = itertools.islice(self._turns, REQUESTS)
        calls = [session.seal(version=version) for session, version in turns]
        frames = [b"".join(encode_sealed(call.header, call.ciphertext)) for call in calls]
        with connect(genuine(self._world).address, 30) as channel:
            exchange(channel, FrameType.HEALTH)
            used, begun = self._processor_s(), time.perf_counter()
            answers = [exchange(channel, FrameType.REQUEST, frame) for frame in frames]
            passed, used = time.perf_counter() - begun, self._processor_s() - used
        for call, answer in zip(calls, answers, strict=True):
            if call.open(*parse_sealed(answer)).trailer.status is not Code.OK:
                raise RuntimeError("a request was not answered")
        return passed * 1e6 / REQUESTS, used * 1e6 / REQUESTS

    def _processor_s(self) -> float:
        tasks = (
            task
            for pid in family(self._pid)
            for task in Path(f"/proc/{pid}/task").glob("*/schedstat")
        )
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _load(world: LocalDeployment, version: int) -> None:
    with DATA.onnx.open("rb") as file, tempfile.TemporaryDirectory() as folder:
        inputs, outputs = read_signature(file)
        file.seek(0)
        facts = {"version": version, "inputs": inputs, "outputs": outputs, "answer_bucket": 4096}
        genuine(world).load(seal(world, Path(folder), file.read(), **facts))


def _serve(world: LocalDeployment, models: int) -> LocalDeployment:
    world.start_enclave()
    world.start_host([world.seal_model(DATA.onnx)], tapped=False)
    world.wait_until_serving()
    for version in range(2, models + 1):
        _load(world, version)
    return world


@contextlib.contextmanager
def sides() -> Iterator[dict[str, Side]]:
    """Start the three enclaves, each in a deployment of its own, and whoever asks them."""
    with contextlib.ExitStack() as stack:

        def started(models: int) -> LocalDeployment:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cm-")))
            return _serve(stack.enter_context(prepared(base, TREE, _LIMITS)), models)

        many = started(MODELS)
        yield {
            ONE: Side(started(1), 1, 1),
            MANY_SESSIONS: Side(started(1), SESSIONS, 1),
            ONE_OF_MANY: Side(many, 1, 1),
            EACH_OF_MANY: Side(many, MODELS, MODELS),
        }


def rounds() -> dict[str, list[tuple[float, float]]]:
    """Let them take turns, each time in another order."""
    done: dict[str, list[tuple[float, float]]] = {name: [] for name in _ORDER}
    with sides() as started:
        for number in range(BLOCKS):
            first = number % len(_ORDER)
            for name in _ORDER[first:] + _ORDER[:first]:
                done[name].append(started[name].block())
    return done


def main() -> int:
    """Measure, print, and return 1 if a target is missed."""
    runs = [rounds() for _ in range(TIMES)]
    times, ratios = {}, []
    for index, kind in enumerate(("clock", "processor")):
        columns = [
            {name: [block[index] for block in blocks] for name, blocks in run.items()}
            for run in runs
        ]
        for name in _ORDER:
            times[f"{name}: {kind}"] = [value for run in columns for value in run[name]]
        for name, target in _TARGETS.items():
            value = statistics.mean(median_of(run[name], run[ONE]) for run in columns)
            ratios.append(Ratio(f"{name} / 1, by the {kind}", value, target))
    return report("flat: microseconds of one request", times, ratios)


if __name__ == "__main__":
    sys.exit(main())
