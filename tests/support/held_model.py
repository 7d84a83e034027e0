"""A model whose runs a test holds back: so it says who waits for whom, and who runs with whom."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from casemate import limits
from casemate.attestation.structures import ServiceLimits
from casemate.errors import Code, RequestError
from casemate.sealed_model import Serving
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.runs import Left, Run
from casemate_enclave.scheduling import Bounds, ScheduledModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casemate_enclave.runs import Outcome

Tensors = dict[str, Any]
POISON = -1.0
ENDLESS = -2.0
AT_FAULT = b"at fault"
# What makes outputs have other rows than went in.
OTHER_ROWS: dict[str, Callable[[Tensors], Tensors]] = {
    "a row too few": lambda outputs: {name: array[:-1] for name, array in outputs.items()},
    "too many": lambda outputs: {
        name: np.concatenate([array, array]) for name, array in outputs.items()
    },
    "none": lambda outputs: {name: array.sum() for name, array in outputs.items()},
}


class Gate:
    """A model that doubles; each run waits until it is let through."""

    ready = True
    quick = False

    def admit(self, owner: bytes | None) -> None:
        """Refuse one asker."""
        if owner == AT_FAULT:
            raise RequestError(Code.UNAVAILABLE, "out of service for this asker")

    def __init__(self) -> None:
        self.runs: list[int] = []  # rows of each run
        self.firsts: list[float] = []  # and its first value
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.active = 0
        self.most = 0
        self.lock = threading.Lock()
        self.spoil: Callable[[Tensors], Tensors] = lambda outputs: outputs
        self.begun: list[Run] = []
        self.lost = False  # whether its process is gone
        self.idle = False  # whether its process takes on runs of those who would not wait for it

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None = None,
        *,
        meanwhile: Callable[[], None] | None = None,
    ) -> Tensors:
        """Double every element, once the gate is open."""
        rows = inputs["x"]
        with self.lock:
            self.runs.append(len(rows))
            self.firsts += rows[:1, 0].tolist()
            self.active += 1
            self.most = max(self.most, self.active)
        self.entered.release()
        try:
            self.open.wait(60)
            if (rows == ENDLESS).any():
                left_s = max(0.0, deadline - time.monotonic())
                (cancellation or Cancellation()).wait(left_s)
                raise RequestError(Code.DEADLINE_EXCEEDED, "stopped")
            if (rows == POISON).any():
                raise RequestError(Code.MODEL_FAILED, "poisoned")
            return self.spoil(dict.fromkeys(outputs, rows * 2))
        finally:
            with self.lock:
                self.active -= 1

    def begin(
        self,
        runs: Sequence[Run],
        *,
        patient: bool = False,
        ended: Callable[[], None] | None = None,
    ) -> UnderWay | None:
        """Begin the first; for who would not wait only if it is ``idle``, since it is not quick."""
        assert ended is None
        return UnderWay(self, runs[0]) if (patient or self.idle) and not self.lost else None

    def repeat(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None,
    ) -> Tensors:
        """As ``run``."""
        return self.run(inputs, outputs, deadline, cancellation)


class UnderWay:
    """A run on a thread of its own; a ``Pipelined``."""

    members = (0,)

    def __init__(self, gate: Gate, run: Run) -> None:
        self.done = False
        self._outcome: Outcome = Left.LOST
        self._back = threading.Event()
        gate.begun.append(run)
        threading.Thread(target=self._run, args=(gate, run), daemon=True).start()

    def _run(self, gate: Gate, run: Run) -> None:
        try:
            self._outcome = gate.run(run.inputs, run.outputs, run.deadline, run.cancellation)
        except RequestError as error:
            self._outcome = error
        self._back.set()

    @property
    def left(self) -> int:
        """As ``Pipelined``."""
        return int(not self.done)

    def receive(self, patience_s: float) -> list[tuple[int, Outcome]]:
        """As ``Together``."""
        self.done = self._back.wait(patience_s)
        return [(0, self._outcome)] if self.done else []

    def split(self) -> None:
        """Nothing: it is one."""

    def hurry(self) -> float:
        """As ``Together``."""
        return limits.LATE_S


def bounds(**serving: Any) -> Bounds:  # noqa: ANN401 - Serving's fields
    """Return those of a model that joins and has one place, unless ``serving`` says otherwise."""
    configured = ServiceLimits(1, 1, 1, 1)
    wanted: dict[str, Any] = {"batch_dimension": 0, "batch_rows": 64, "concurrency": 1}
    return Bounds.of(Serving(**{**wanted, **serving}), configured)


def scheduled(gate: Gate, **serving: Any) -> ScheduledModel:  # noqa: ANN401 - as above
    """Return the model behind its bounds."""
    return ScheduledModel(gate, bounds(**serving), contextlib.nullcontext)


def rows(*values: float, width: int = 2) -> np.ndarray:
    """Return a row of ``width`` for each of ``values``."""
    return np.repeat(np.array(values, np.float32)[:, None], width, axis=1)
