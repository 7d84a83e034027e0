"""How many runs streams may have under way: a share of the places (SPEC 5.9.6)."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import Code, RequestError
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.shares import Shares

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate_enclave.runs import Asker, Outcome, Run, SharedModel, Together
    from casemate_enclave.runtime import Meanwhile, Tensors
    from casemate_enclave.shares import Owner

_AGAIN_S = 0.005  # a small model has run some times meanwhile


class StreamPlaces:
    """The places of all streams, of which each asker has a share; thread-safe."""

    def __init__(
        self, count: int = limits.STREAM_RUNS_MAX, listing: Callable[[], bool] = lambda: False
    ) -> None:
        self._shares = Shares(count, listing)

    def waiting(self, model: SharedModel, owner: Owner) -> WaitingModel:
        """Return ``model`` as streams of ``owner`` run it."""
        return WaitingModel(model, self._shares, owner)


class WaitingModel:
    """A model whose runs wait for their turn, where a unary request would be refused.

    A stream's questions wait anyway: while they do, no more of them is read.
    """

    def __init__(self, model: SharedModel, places: Shares, owner: Owner) -> None:
        self._model = model
        self._places = places
        self._owner = owner

    @property
    def quick(self) -> bool:
        """As ``SharedModel``."""
        return self._model.quick

    def begin(self, runs: Sequence[Run]) -> Together | None:
        """As ``SharedModel``: together they take one place."""
        if not self._places.try_take(self._owner):
            return None
        together = self._model.begin(runs)
        give_back = partial(self._places.free, self._owner)
        if together is None:
            give_back()
            return None
        return _Placed(together, give_back)

    def offer(self, runs: Sequence[tuple[Run, object]], asker: Asker) -> set[object]:
        """As ``SharedModel``: each takes a place until it is settled."""
        placed = [(run, ticket) for run, ticket in runs if self._places.try_take(self._owner)]
        give_back = partial(self._places.free, self._owner)
        taken = self._model.offer(placed, _PlacedAsker(asker, give_back)) if placed else set()
        for _ in range(len(placed) - len(taken)):
            give_back()
        return taken

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
        """As ``SharedModel.run``; never OVERLOADED."""
        cancellation = cancellation or Cancellation()
        if cancellation.owner is None:
            cancellation.owner = self._owner.key

        def give_up() -> None:
            if cancellation.cancelled or time.monotonic() >= deadline:
                detail = "the deadline passed before the model ran, or nobody waited any more"
                raise RequestError(Code.DEADLINE_EXCEEDED, detail)

        while True:
            give_up()
            self._places.take(self._owner, give_up)
            try:
                return self._model.run(
                    *(inputs, outputs, deadline, cancellation),
                    repeated=repeated,
                    meanwhile=meanwhile,
                )
            except RequestError as error:
                if error.code is not Code.OVERLOADED:
                    raise
            finally:
                self._places.free(self._owner)
            cancellation.wait(_AGAIN_S)


class _Placed:
    """Runs under way that give their place back when all have come back."""

    def __init__(self, together: Together, give_back: Callable[[], None]) -> None:
        self.members = together.members
        self._together = together
        self._give_back = give_back

    @property
    def done(self) -> bool:
        """As ``Together``."""
        return self._together.done

    def receive(self, patience_s: float) -> list[tuple[int, Outcome]]:
        """As ``Together``."""
        back = self._together.receive(patience_s)
        if self._together.done:
            self._give_back()
        return back

    def hurry(self) -> float:
        """As ``Together``."""
        return self._together.hurry()


class _PlacedAsker:
    """Gives the place of each run back before the asker hears of it."""

    def __init__(self, asker: Asker, give_back: Callable[[], None]) -> None:
        self._asker = asker
        self._give_back = give_back

    def settle(self, ticket: object, outcome: Outcome) -> None:
        """As ``Asker``."""
        self._give_back()
        self._asker.settle(ticket, outcome)

    def settled(self) -> None:
        """As ``Asker``."""
        self._asker.settled()
