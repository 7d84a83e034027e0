"""Requests of several callers in one run: joined along the rows, split by them (SPEC 8.8).

Promise: an answer holds its own request's rows of every output and nothing else. An output that
does not have as many rows as went in is no answer to anybody: then each request runs by itself.
"""

from __future__ import annotations

import threading
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from casemate import limits
from casemate.errors import Code, RequestError
from casemate_enclave.cancellation import Cancellation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Tensors = Mapping[str, Array]


J = TypeVar("J", bound="Joinable")


class State(Enum):
    """Where a waiting request is."""

    QUEUED = auto()
    GRANTED = auto()  # it may run, and with it whom it takes along
    JOINED = auto()  # another one runs it
    DONE = auto()
    LEFT = auto()  # its deadline passed, or nobody waits for it any more


class Group:
    """Requests that run together; the run ends early only when none of them waits any more."""

    def __init__(self, members: int) -> None:
        self.cancellation = Cancellation()
        self._lock = threading.Lock()
        self._waiting = members

    def leave(self) -> None:
        """Note that one of them has left."""
        with self._lock:
            self._waiting -= 1
            last = not self._waiting
        if last:
            self.cancellation.cancel()


class Joinable:
    """A request as one of several that run together; ``deadline`` as that of ``Run``."""

    __slots__ = ("alone", "deadline", "inputs", "outputs", "rows", "shape", "size")

    def __init__(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        *,
        rows: int | None,
        axis: int | None,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.deadline = deadline
        self.rows = rows or 0
        self.alone = not rows  # without rows to be told apart by, it can be joined with nothing
        self.shape = () if axis is None else _shape(inputs, outputs, axis)
        self.size = sum([array.nbytes for array in inputs.values()])


class Job(Joinable):
    """A request that waits; ``deadline`` in seconds of ``time.monotonic``.

    Everything but ``wake`` is changed under the scheduler's lock alone.
    """

    __slots__ = ("answer", "group", "owner", "state", "wake")
    has_thread = True  # that waits for it

    def __init__(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        *,
        rows: int | None,
        axis: int | None,
        owner: bytes | None = None,
    ) -> None:
        """``owner``: a caller or a session, of which each has its turn."""
        super().__init__(inputs, outputs, deadline, rows=rows, axis=axis)
        self.owner = owner
        self.state = State.QUEUED
        self.answer: Tensors | None = None
        self.group: Group | None = None
        self.wake = threading.Lock()
        self.wake.acquire()

    def rouse(self) -> None:
        """Tell whoever waits that it has a place; under the scheduler's lock."""
        self.wake.release()


def _shape(inputs: Tensors, outputs: Sequence[str], axis: int) -> tuple[object, ...]:
    """What two requests must have in common to run together."""
    fixed = [
        (name, array.dtype, array.shape[:axis], array.shape[axis + 1 :])
        for name, array in sorted(inputs.items())  # names differ: no array is compared
    ]
    return (*outputs, *fixed)


def count_rows(inputs: Tensors, axis: int) -> int:
    """Return how many rows every input has; raises RequestError(INVALID_INPUT) if they differ."""
    counts = {array.shape[axis] for array in inputs.values()}
    if len(counts) != 1:
        raise RequestError(Code.INVALID_INPUT, "the inputs differ in their number of rows")
    return int(counts.pop())


def gather(leader: J, queue: Iterable[J], most_rows: int, cut: float) -> list[J]:
    """Return who runs together with ``leader``, first come first served, the leader first.

    Bounded by rows and bytes; whose deadline lies before ``cut`` is not taken along.
    """
    members, rows, size = [leader], leader.rows, leader.size
    for job in queue:
        if job.alone or job.deadline <= cut or job.shape != leader.shape:
            continue
        if rows + job.rows > most_rows or size + job.size > limits.BATCH_BYTES_MAX:
            continue
        members.append(job)
        rows, size = rows + job.rows, size + job.size
    return members


def join(members: Sequence[Joinable], axis: int) -> Tensors:
    """Return the inputs of all ``members``, one after the other along ``axis``."""
    first = members[0].inputs
    return {
        name: np.concatenate([member.inputs[name] for member in members], axis=axis)
        for name in first
    }


def split(outputs: Tensors, members: Sequence[Joinable], axis: int) -> list[Tensors] | None:
    """Return each member's own rows; None unless every output has exactly the rows of all."""
    total = sum(member.rows for member in members)
    if any(array.ndim <= axis or array.shape[axis] != total for array in outputs.values()):
        return None
    answers: list[Tensors] = []
    start = 0
    for member in members:
        end = start + member.rows
        rows = (slice(None),) * axis + (slice(start, end),)
        answers.append({name: array[rows] for name, array in outputs.items()})
        start = end
    return answers
