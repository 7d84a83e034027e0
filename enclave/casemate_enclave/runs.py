"""Answers made step by step, and the runs that they wait for on their way (SPEC 8.8, 9.2.1).

What answers a question is a generator, so that one thread can have many under way: it yields each
run that it needs and is sent the outputs, or has thrown into it why there are none. Before what may
take long on the thread that drives it, it yields None.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from casemate.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.runtime import Meanwhile, Tensors

T = TypeVar("T")


class Left(Enum):
    """Why a run that was begun with others is still to be done."""

    ALONE = auto()  # as if it had not begun: it cannot be done together with others
    LOST = auto()  # the worker ended: it is repeated, once


Outcome = Mapping[str, Any] | RequestError | Left


class Together(Protocol):
    """Runs of one model that are under way in one place; one thread at a time may hold it."""

    @property
    def members(self) -> Sequence[int]:
        """Which of the runs that were to begin are under way."""
        ...

    @property
    def done(self) -> bool:
        """Whether all have come back."""
        ...

    def receive(self, patience_s: float) -> list[tuple[int, Outcome]]:
        """Return what has come back, by its place in what was to begin.

        Waits ``patience_s`` seconds at most: nothing then. Never raises.
        """
        ...

    def hurry(self) -> float:
        """See to it that no run waits for a long one, nor for ever; return a patience for that."""
        ...


class Pipelined(Together, Protocol):
    """Runs that the same process does one after the other."""

    @property
    def left(self) -> int:
        """How many of them have not come back: so many places they can use."""
        ...

    def split(self) -> None:
        """Let what has not begun wait no longer for what takes long."""
        ...


class Asker(Protocol):
    """Who offers runs; told on any thread, and never raises."""

    def settle(self, ticket: Any, outcome: Outcome) -> None:  # noqa: ANN401 - its own
        """Take what became of the run that it offered as ``ticket``."""
        ...

    def settled(self) -> None:
        """Note that there is no more for the moment."""
        ...


class SharedModel(Protocol):
    """A model whose runs may be begun together."""

    @property
    def quick(self) -> bool:
        """Whether runs that begin now would begin together."""
        ...

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None = None,
        *,
        repeated: bool = False,
        meanwhile: Meanwhile = None,
    ) -> Tensors:
        """As ``LoadedModel.run``; ``repeated``: once more, after the worker ended during it."""
        ...

    def begin(self, runs: Sequence[Run]) -> Together | None:
        """Begin of ``runs``, all this model's, those that can go together at once, if any can."""
        ...

    def offer(self, runs: Sequence[tuple[Run, object]], asker: Asker) -> set[object]:
        """Leave runs to the model, each with a ticket, to be joined with what else waits for it.

        Returns the tickets of those that it takes on: of these ``asker`` is told, on any thread.
        """
        ...


class Run(NamedTuple):
    """A run that an answer waits for; ``deadline`` in seconds of ``time.monotonic``.

    ``meanwhile`` is work that whoever has begun it may do, once, before it waits for it.
    """

    model: SharedModel
    inputs: Tensors
    outputs: Sequence[str]
    deadline: float
    cancellation: Cancellation | None = None
    meanwhile: Meanwhile = None

    def alone(self, *, repeated: bool = False) -> Tensors:
        """Do it on this thread; raises as ``LoadedModel.run``."""
        return self.model.run(
            *(self.inputs, self.outputs, self.deadline, self.cancellation),
            repeated=repeated,
            meanwhile=None if repeated else self.meanwhile,
        )


Steps = Generator[Run | None, Any, T]
Runs = Generator[Run, Any, T]  # steps that take long by their runs alone


def finish(steps: Steps[T], need: Run | None = None, *, repeated: bool = False) -> T:
    """Drive ``steps`` to their end on this thread, from ``need`` on if they have begun."""
    try:
        while True:
            need = _next(steps, need, repeated=repeated)
            repeated = False
    except StopIteration as end:
        value: T = end.value
        return value


def resume(steps: Steps[T], need: Run, outcome: Outcome) -> T:
    """Drive ``steps`` to their end on this thread, from the ``outcome`` of ``need`` on."""
    try:
        if isinstance(outcome, Left):
            alone = need._replace(meanwhile=None)  # which may have been done
            return finish(steps, alone, repeated=outcome is Left.LOST)
        if isinstance(outcome, RequestError):
            return finish(steps, steps.throw(outcome))
        return finish(steps, steps.send(outcome))
    except StopIteration as end:
        value: T = end.value
        return value


def _next(steps: Steps[T], need: Run | None, *, repeated: bool) -> Run | None:
    if need is None:
        return next(steps)
    try:
        outputs = need.alone(repeated=repeated)
    except Exception as error:  # noqa: BLE001 - it is the answer's to handle
        return steps.throw(error)
    return steps.send(outputs)
