"""How many runs streams may have under way: a share of the places (SPEC 5.9.6)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import Code, RequestError
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.shares import Shares

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate_enclave.runtime import LoadedModel, Tensors
    from casemate_enclave.shares import Owner

_AGAIN_S = 0.005  # a small model has run some times meanwhile


class StreamPlaces:
    """The places of all streams, of which each asker has a share; thread-safe."""

    def __init__(
        self, count: int = limits.STREAM_RUNS_MAX, listing: Callable[[], bool] = lambda: False
    ) -> None:
        self._shares = Shares(count, listing)

    def waiting(self, model: LoadedModel, owner: Owner) -> WaitingModel:
        """Return ``model`` as streams of ``owner`` run it."""
        return WaitingModel(model, self._shares, owner)


class WaitingModel:
    """A model whose runs wait for their turn, where a unary request would be refused.

    A stream's questions wait anyway: while they do, no more of them is read.
    """

    def __init__(self, model: LoadedModel, places: Shares, owner: Owner) -> None:
        self._model = model
        self._places = places
        self._owner = owner

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None = None,
    ) -> Tensors:
        """As ``LoadedModel.run``; never OVERLOADED."""
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
                return self._model.run(inputs, outputs, deadline, cancellation)
            except RequestError as error:
                if error.code is not Code.OVERLOADED:
                    raise
            finally:
                self._places.free(self._owner)
            cancellation.wait(_AGAIN_S)
