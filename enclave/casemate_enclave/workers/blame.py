"""Whose runs end a model's workers: one asker's inputs are not all askers' loss (SPEC 8.10.4)."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque

from casemate import limits
from casemate.errors import Code, RequestError


class Blame:
    """For one model: which askers' runs ended a worker twice, of late; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: OrderedDict[bytes, deque[float]] = OrderedDict()

    def check(self, owner: bytes | None) -> None:
        """Raise RequestError(UNAVAILABLE) if too many of this asker's did; None is nobody's."""
        times = self._times.get(owner) if owner is not None else None
        if times is None or len(times) < limits.WORKER_BLAME_MAX:
            return
        if times[0] > time.monotonic() - limits.WORKER_WINDOW_S:
            detail = "the model is out of service for this asker: its inputs ended it too often"
            raise RequestError(Code.UNAVAILABLE, detail)

    def add(self, owner: bytes | None) -> None:
        """Note that one of this asker's ended a worker on which nothing else ran."""
        if owner is None:
            return
        with self._lock:
            times = self._times.setdefault(owner, deque(maxlen=limits.WORKER_BLAME_MAX))
            times.append(time.monotonic())
            self._times.move_to_end(owner)
            while len(self._times) > limits.WORKER_BLAMED_MAX:
                self._times.popitem(last=False)
