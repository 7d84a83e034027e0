"""A closed loop of calls against one deployment: so many in flight, for so long."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from casemate.errors import CasemateError, Code, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

IN_FLIGHT_MAX: Final = 256  # a thread each
SECONDS_MAX: Final = 600.0  # a test of one's own service, not a siege
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
_REFUSED_PAUSE_S: Final = 0.05  # whoever is refused at once must not ask thousands of times
_GRACE_S: Final = 60.0  # for calls that are under way at the end


@dataclass(frozen=True, slots=True)
class Load:
    """What one run found; latencies in milliseconds, ascending; ``refused`` counts by code."""

    in_flight: int
    seconds: float
    latencies: Sequence[float] = field(repr=False)
    refused: Counter[str]

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Return the latency that ``percent`` of the calls kept, nearest rank."""
        if not self.latencies:
            raise RequestError(Code.UNAVAILABLE, f"no call was answered: {dict(self.refused)}")
        rank = min(len(self.latencies) - 1, int(len(self.latencies) * percent / 100))
        return self.latencies[rank]

    def as_json(self) -> dict[str, object]:
        """Return the figures as plain JSON values."""
        return {
            "in_flight": self.in_flight,
            "seconds": round(self.seconds, 3),
            "answers": len(self.latencies),
            "throughput": round(self.throughput, 1),
            "latency_ms": {
                f"p{percent:g}": round(self.percentile(percent), 3) for percent in PERCENTILES
            },
            "refused": dict(self.refused),
        }


class _Worker:
    """Calls one after the other; its own lists, so that no lock is within the measurement."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.ended: list[tuple[int, int]] = []  # when, and how long it took, in nanoseconds
        self.refused: list[tuple[int, str]] = []

    def run(self, until: int) -> None:
        while (start := time.perf_counter_ns()) < until:
            try:
                self._call()
            except CasemateError as error:
                self.refused.append((time.perf_counter_ns(), str(error.code)))
                time.sleep(_REFUSED_PAUSE_S)
            else:
                end = time.perf_counter_ns()
                self.ended.append((end, end - start))


def run_load(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float,
    warm_up_s: float = 1.0,
    measuring: Callable[[], object] = lambda: None,
) -> Load:
    """Keep each of ``calls`` going on a thread of its own and return what was answered meanwhile.

    ``measuring`` is called when the warm-up is over and when the time is. A call that raises
    CasemateError counts as refused; anything else it raises ends its thread and is raised here.
    """
    workers = [_Worker(call) for call in calls]
    begin = time.perf_counter_ns() + int(warm_up_s * 1e9)
    end = begin + int(seconds * 1e9)
    faults: list[BaseException] = []

    def work(worker: _Worker) -> None:
        try:
            worker.run(end)
        except BaseException as error:  # noqa: BLE001 - raised again below
            faults.append(error)

    threads = [threading.Thread(target=work, args=(w,), name="load", daemon=True) for w in workers]
    for thread in threads:
        thread.start()
    for moment in (begin, end):
        time.sleep(max(0.0, (moment - time.perf_counter_ns()) / 1e9))
        measuring()
    for thread in threads:
        thread.join(_GRACE_S)
    if faults:
        raise faults[0]
    return _within(workers, begin, end)


def _within(workers: Sequence[_Worker], begin: int, end: int) -> Load:
    """Count what ended within the time, whenever it began."""
    took = sorted(ns / 1e6 for w in workers for at, ns in w.ended if begin <= at < end)
    refused = Counter(code for w in workers for at, code in w.refused if begin <= at < end)
    return Load(len(workers), (end - begin) / 1e9, took, refused)
