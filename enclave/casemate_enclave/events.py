"""What the enclave says in the clear: enumerated events on stderr, counters, durations of steps.

Nothing here takes a text. What happens after a request is opened is neither an event nor counted:
with one request at a time a counter of sealed statuses would tell the host each status (SPEC 11.2).
Durations are therefore published in groups (``steps``).
"""

from __future__ import annotations

import json
import sys
import threading
from enum import StrEnum, unique
from typing import TYPE_CHECKING, TextIO

from casemate_enclave.steps import Step, Steps, Timed

if TYPE_CHECKING:
    from casemate.errors import Code

__all__ = ["Counter", "Event", "Journal", "Step"]


@unique
class Event(StrEnum):
    """Everything that can be printed."""

    STARTED = "STARTED"
    NOT_CONFINED = "NOT_CONFINED"
    UNSAFE_FORM = "UNSAFE_FORM"
    KEYS_NOT_LOCKED = "KEYS_NOT_LOCKED"
    CONFIGURED = "CONFIGURED"
    CONFIGURE_REFUSED = "CONFIGURE_REFUSED"
    FAILED = "FAILED"
    MODEL_LOADED = "MODEL_LOADED"
    MODEL_PLACED = "MODEL_PLACED"  # percent of its nodes on accelerators
    MODEL_REFUSED = "MODEL_REFUSED"
    MODEL_REPLACED = "MODEL_REPLACED"
    MODEL_UNLOADED = "MODEL_UNLOADED"
    MODEL_OUT_OF_SERVICE = "MODEL_OUT_OF_SERVICE"
    WORKER_ENDED = "WORKER_ENDED"
    DRAINING = "DRAINING"
    KEY_ROTATED = "KEY_ROTATED"
    DEVICE_SILENT = "DEVICE_SILENT"
    CONNECTION_REFUSED = "CONNECTION_REFUSED"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    STOPPED = "STOPPED"


@unique
class Counter(StrEnum):
    """Everything that frame type 9 reports (SPEC 9.3)."""

    CONNECTIONS_ACCEPTED = "connections_accepted"
    CONNECTIONS_REFUSED = "connections_refused"
    FRAMES_REFUSED = "frames_refused"
    REQUESTS = "requests"
    REQUESTS_REFUSED = "requests_refused"
    STREAMS = "streams"
    STREAMS_REFUSED = "streams_refused"
    STREAMS_CUT = "streams_cut"
    EVIDENCE = "evidence"
    MODELS_LOADED = "models_loaded"
    MODELS_REFUSED = "models_refused"
    WORKERS_ENDED = "workers_ended"
    DEVICE_FAILURES = "device_failures"
    INTERNAL_ERRORS = "internal_errors"


class Journal:
    """Counts and prints; thread-safe, and never the reason why something else fails."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(Counter, 0)
        self._steps = Steps()

    def emit(self, event: Event, *, code: Code | None = None, count: int | None = None) -> None:
        """Print one JSON line made of enumerated names, a code and a number."""
        line: dict[str, str | int] = {"event": event.value}
        if code is not None:
            line["code"] = code.value
        if count is not None:
            line["count"] = count
        try:
            with self._lock:
                print(json.dumps(line), file=self._stream or sys.stderr, flush=True)
        except (OSError, ValueError):
            return  # a full or closed pipe on the host's side

    def count(self, counter: Counter) -> None:
        """Add one to ``counter``."""
        with self._lock:
            self._counts[counter] += 1

    def counters(self) -> dict[str, int]:
        """Every counter by name, zero included."""
        with self._lock:
            return {counter.value: count for counter, count in self._counts.items()}

    def timed(self, step: Step, count: int = 1) -> Timed:
        """Return a context manager that adds its block's duration to ``step``.

        A block may do the step for several requests, ``count`` > 0: then each has its part. Whoever
        answers a request times ``SEAL`` exactly once, last.
        """
        return self._steps.timed(step, count)

    def answered(self, opened_ns: int, ran_ns: int, sealed_ns: int) -> None:
        """Add what a request's ``OPEN``, ``RUN`` and ``SEAL`` took, the last two on this thread."""
        self._steps.add_answer(opened_ns // 1000, ran_ns // 1000, sealed_ns // 1000)

    def ran(self, nanoseconds: int, count: int) -> None:
        """Add to ``RUN`` what the runs of ``count`` requests took together, each all of it."""
        self._steps.add(Step.RUN, nanoseconds // 1000, count)

    def waited(self, microseconds: int) -> None:
        """Add to ``QUEUE`` what was not waited on a thread; before the ``RUN`` on this one ends."""
        self._steps.add(Step.QUEUE, microseconds)

    def histograms(self) -> dict[str, dict[str, list[int] | int]]:
        """Every step's durations by name, as they were published last (SPEC 9.3)."""
        return self._steps.histograms()
