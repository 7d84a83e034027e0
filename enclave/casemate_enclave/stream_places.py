"""How many runs streams may have under way: a share of the places (SPEC 5.9.6)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import Code, RequestError
from casemate_enclave.cancellation import Cancellation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate_enclave.runtime import LoadedModel, Tensors

_AGAIN_S = 0.005  # a small model has run some times meanwhile


class StreamPlaces:
    """The places of all streams; thread-safe."""

    def __init__(self, count: int = limits.STREAM_RUNS_MAX) -> None:
        self._free = threading.Semaphore(count)

    def waiting(self, model: LoadedModel) -> WaitingModel:
        """Return ``model`` as streams run it."""
        return WaitingModel(model, self._free)


class WaitingModel:
    """A model whose runs wait for their turn, where a unary request would be refused.

    A stream's questions wait anyway: while they do, no more of them is read.
    """

    def __init__(self, model: LoadedModel, free: threading.Semaphore) -> None:
        self._model = model
        self._free = free

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None = None,
    ) -> Tensors:
        """As ``LoadedModel.run``; never OVERLOADED."""
        cancellation = cancellation or Cancellation()
        while True:
            self._await_place(deadline, cancellation)
            try:
                return self._model.run(inputs, outputs, deadline, cancellation)
            except RequestError as error:
                if error.code is not Code.OVERLOADED:
                    raise
            finally:
                self._free.release()
            cancellation.wait(_AGAIN_S)

    def _await_place(self, deadline: float, cancellation: Cancellation) -> None:
        while True:
            if cancellation.cancelled or time.monotonic() >= deadline:
                detail = "the deadline passed before the model ran, or nobody waited any more"
                raise RequestError(Code.DEADLINE_EXCEEDED, detail)
            if self._free.acquire(timeout=limits.STREAM_LOOK_S):
                return
