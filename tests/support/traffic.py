"""Callers that ask without pause while something happens to the service; every end is kept."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from casemate.errors import CasemateError, Code
from casemate_devkit.local import MODEL
from tests.support.attacker import ROWS

if TYPE_CHECKING:
    from casemate.client import Client

TIMEOUT_S = 60.0
CALLERS = 6


@dataclass
class Traffic:
    """Callers that ask one after another until they are told to end; every end is kept."""

    client: Client
    repeatable: bool = False
    begun: int = 0
    ends: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._expected = self.client.infer(MODEL, {"features": ROWS}).outputs["probabilities"]
        self._threads = [threading.Thread(target=self._ask) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                self.begun += 1
            end = self._one()
            with self._lock:
                self.ends.append((time.monotonic(), end))
            if end != Code.OK:
                self._stop.wait(0.02)

    def _one(self) -> str:
        try:
            result = self.client.infer(
                MODEL, {"features": ROWS}, timeout_s=TIMEOUT_S, repeatable=self.repeatable
            )
        except CasemateError as error:
            return error.code
        right = np.array_equal(result.outputs["probabilities"], self._expected)
        return Code.OK if right else "wrong answer"

    def flows(self, since: float) -> bool:
        with self._lock:
            return sum(end == Code.OK for at, end in self.ends if at > since) > 50

    def end(self) -> Counter[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S + 10)
        assert not any(thread.is_alive() for thread in self._threads)
        assert len(self.ends) == self.begun
        return Counter(end for _, end in self.ends)
