"""THREATS C5: the enclave meets workers that are an attacker's, over their real connections.

Forked and confined by the production spawner. Whatever one does, its own runs end in time, the
enclave's other models are served, and nothing of it stays.
"""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casemate import limits
from casemate.errors import Code, RequestError
from casemate.sealed_model import ModelContents
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.events import Journal
from casemate_enclave.runs import Run
from casemate_enclave.workers.runtime import WorkerRuntime
from casemate_enclave.workers.spawning import Spawner
from tests.support import workers
from tests.support.attacker import eventually
from tests.support.hostile_worker import SPAWNER
from tests.support.workers import children, header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_enclave.runtime import LastingModel

pytestmark = pytest.mark.integration

X = {"x": np.arange(6, dtype=np.float32)}
MORE_THAN_WAIT = 1000  # packets in the kernel, whatever its settings for one connection
SLACK_S = 60.0  # of a machine with much else to do


class World:
    """An enclave's side of one hostile spawner."""

    def __init__(self) -> None:
        channel, self.process = workers.start(SPAWNER)
        self.channel = channel
        self.spawner = Spawner(channel, lambda: None)
        self.runtime = WorkerRuntime(
            *(self.spawner, ["CPUExecutionProvider"], Journal(io.StringIO())),
            run_bytes=64 << 20,
            threads=1,
        )

    def load(self, does: str) -> LastingModel:
        ends = {"x": ("FP32", (0,))}, {"y": ("FP32", (0,))}
        return self.runtime.load(ModelContents.of({"m": b"model"}), header(*ends, name=does))

    @property
    def alive(self) -> set[int]:
        return children(self.process.pid)


@pytest.fixture(scope="module")
def started() -> Iterator[World]:
    world = World()
    yield world
    world.channel.close()
    world.process.kill()
    world.process.wait(60)


@pytest.fixture
def world(started: World) -> Iterator[World]:
    """Nothing that a test leaves behind stays."""
    yield started
    assert eventually(lambda: not started.alive)


def ask(
    model: LastingModel, seconds: float = 0.5, cancellation: Cancellation | None = None
) -> list[float]:
    outputs = model.run(X, ["y"], time.monotonic() + seconds, cancellation)
    return list(map(float, outputs["y"]))


def outcome(model: LastingModel, seconds: float = 0.5) -> Code:
    """Ask; there must be an answer or a refusal, and in time."""
    begun = time.monotonic()
    code = Code.OK
    try:
        assert ask(model, seconds) == X["x"].tolist()
    except RequestError as error:
        code = error.code
    assert time.monotonic() - begun < seconds + limits.WORKER_GRACE_S + SLACK_S
    return code


def outcomes(model: LastingModel, count: int) -> list[Code]:
    """Ask so many times side by side; all must come back."""
    codes: list[Code] = []
    threads = [
        threading.Thread(target=lambda: codes.append(outcome(model)), daemon=True)
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
    assert len(codes) == count
    return codes


@pytest.mark.parametrize(
    ("does", "codes"),
    [
        ("never_answers", {Code.DEADLINE_EXCEEDED}),
        ("answers_before_it_reads", {Code.MODEL_FAILED, Code.DEADLINE_EXCEEDED}),
        ("asks_for_all_memory", {Code.MODEL_FAILED, Code.DEADLINE_EXCEEDED}),
        ("hides_its_end_of_a_line", {Code.MODEL_FAILED, Code.DEADLINE_EXCEEDED}),
        ("hangs_up_on_runs", {Code.MODEL_FAILED, Code.DEADLINE_EXCEEDED}),
        ("sends_more_than_fits", {Code.MODEL_FAILED, Code.DEADLINE_EXCEEDED}),
    ],
)
def test_c5_a_hostile_worker_ends_its_own_runs_in_time_and_nobody_elses(
    world: World, does: str, codes: set[Code]
) -> None:
    other, model = world.load("echoes"), world.load(does)
    assert set(outcomes(model, 1) + outcomes(model, 8)) <= codes
    assert ask(other, 90) == X["x"].tolist()


def test_c5_runs_that_are_begun_wait_for_no_worker_that_reads_nothing(world: World) -> None:
    """It says what the next runs gave before they are asked for, so each seems to come back."""
    model = world.load("answers_ahead")
    assert outcome(model, 90) is Code.DEADLINE_EXCEEDED
    asked_of: Any = model
    large = {"x": np.zeros(limits.WORKER_INLINE_MAX // 4, np.float32)}

    def begin() -> None:
        for _ in range(MORE_THAN_WAIT):
            together = model.begin([Run(asked_of, large, ["y"], time.monotonic() + 90, None)])
            if together is None:
                return  # the worker was given up
            while not together.done:
                together.receive(90)

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    thread.join(SLACK_S)
    assert not thread.is_alive()
    assert outcome(model, 90) is Code.DEADLINE_EXCEEDED  # by another worker


def test_c5_a_worker_that_takes_no_commands_is_ended(world: World) -> None:
    """What the enclave says to it waits in the kernel, until nothing more goes in."""
    model = world.load("takes_no_commands")
    assert ask(model, 90) == X["x"].tolist()
    given_up = Cancellation()
    given_up.cancel()
    for _ in range(MORE_THAN_WAIT):  # each is a command that never blocks
        assert ask(model, 90, given_up) == X["x"].tolist()
    assert set(outcomes(model, 4)) <= {Code.OK, Code.DEADLINE_EXCEEDED}


def test_c5_descriptors_that_a_worker_has_under_way_stop_no_other_worker(world: World) -> None:
    model = world.load("floods_descriptors")
    others = [world.load("echoes") for _ in range(3)]
    for each in (model, *others):
        assert ask(each, 90) == X["x"].tolist()


def test_c5_a_worker_that_nobody_needs_any_more_ends_whether_it_will_or_not(world: World) -> None:
    """Also where the spawner has too much to do to be told at that moment."""
    models = [world.load("outlives_its_dismissal") for _ in range(3)]
    os.kill(world.process.pid, signal.SIGSTOP)
    try:
        for _ in range(MORE_THAN_WAIT):
            world.spawner.kill(1 << 31, wait=False)
        models.clear()
    finally:
        os.kill(world.process.pid, signal.SIGCONT)
    assert eventually(lambda: not world.alive)
