"""What ``/metrics`` tells: closed sets of names, codes and numbers, never content (THREATS H16).

The page is made when it is asked for. The enclave's own counters are fetched then, at most once a
second; what the enclave does not say is absent, not zero.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

from casemate.errors import CasemateError, Code
from casemate_host.histogram import Buckets, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client.core import Metric

    from casemate_host.control import Control, EnclaveCounters
    from casemate_host.standing import Board

ADMISSION: Final = "admission"
RELAY: Final = "relay"
_FRESH_S: Final = 1.0
_ANSWERED: Final = ("Infer", str(Code.OK))


class Metrics:
    """Counts of calls, and the registry of everything that the page shows; thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._streamed = Histogram()  # their arrival takes no time of their own
        self._admission, self._relay = Histogram(), Histogram(self._streamed)
        self.steps = {ADMISSION: self._admission, RELAY: self._relay}
        self.calls = Histogram(self._streamed)
        self._lock = threading.Lock()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._callers: Counter[tuple[str, str]] = Counter()
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def ended(self, method: str, code: Code, caller: str | None = None) -> None:
        """Count a call that ended with ``code``, OK included; ``caller``: whose, where known."""
        with self._lock:
            self._ended[method, str(code)] += 1
            if caller is not None:
                self._callers[caller, str(code)] += 1

    def answered(self, caller: str, took_s: Sequence[float], received_s: float | None) -> None:
        """Count `Infer`s answered in ``took_s`` seconds each that came otherwise than by gRPC.

        ``received_s``: how much of that the arrival took; None on a stream.
        """
        with self._lock:
            self._ended[_ANSWERED] += len(took_s)
            self._callers[caller, _ANSWERED[1]] += len(took_s)
        if received_s is None:
            self._streamed.add(*took_s)
        else:
            self._admission.add(received_s)
            self._relay.add(*[each - received_s for each in took_s])
            self.calls.add(*took_s)

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Show what ``read`` returns at the time, as ``casemate_<name>``."""
        self._gauges[name] = (meaning, read)

    def watch(self, board: Board, control: Control) -> None:
        """Show this host, and the enclave that ``control`` reaches."""
        self.registry.register(_Service(self, board, control))

    def collect(self) -> Iterator[Metric]:
        """Yield what the front counted."""
        with self._lock:
            ended, callers = dict(self._ended), dict(self._callers)
        calls = CounterMetricFamily(
            "casemate_calls", "Calls that ended, by reason code", labels=["method", "code"]
        )
        for (method, code), count in sorted(ended.items()):
            calls.add_metric([method, code], count)
        yield calls
        shares = CounterMetricFamily(
            "casemate_caller_calls", "Calls of each known caller", labels=["caller", "code"]
        )
        for (caller, code), count in sorted(callers.items()):
            shares.add_metric([caller, code], count)
        yield shares
        whole = HistogramMetricFamily("casemate_call_duration_seconds", "Answered calls, whole")
        _add(whole, [], self.calls.read())
        yield whole
        for name, (meaning, read) in self._gauges.items():
            yield GaugeMetricFamily(f"casemate_{name}", meaning, value=read())


class _Service:
    """Collects everything of one host."""

    def __init__(self, metrics: Metrics, board: Board, control: Control) -> None:
        self._metrics = metrics
        self._board = board
        self._control = control
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._enclave: EnclaveCounters | None = None

    def describe(self) -> list[Metric]:
        """Nothing is collected at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield this host's metrics and the enclave's."""
        yield from self._metrics.collect()
        yield from self._standing()
        enclave = self._read()
        steps = HistogramMetricFamily(
            "casemate_step_duration_seconds", "Steps of a request", labels=["step"]
        )
        for step, histogram in self._metrics.steps.items():
            _add(steps, [step], histogram.read())
        for step, buckets in enclave.steps.items() if enclave else ():
            _add(steps, [step], buckets)
        yield steps
        if enclave is not None:
            events = CounterMetricFamily(
                "casemate_enclave_events", "The enclave's counters (SPEC 9.3)", labels=["event"]
            )
            for name, count in sorted(enclave.counters.items()):
                events.add_metric([name], count)
            yield events

    def _standing(self) -> Iterator[Metric]:
        standing = self._board.standing
        serving = GaugeMetricFamily("casemate_serving", "1 while the host serves, else 0")
        serving.add_metric([], float(standing.serving))
        yield serving
        threads = GaugeMetricFamily("casemate_threads", "Threads of the host")
        threads.add_metric([], threading.active_count())
        yield threads
        if standing.evidence is not None:
            age = GaugeMetricFamily(
                "casemate_evidence_age_seconds", "Since the held evidence was verified"
            )
            age.add_metric([], max(0.0, time.time() - standing.evidence.verified_at / 1000))
            yield age
        ready = GaugeMetricFamily(
            "casemate_model_ready", "1 for each model that answers", labels=["model", "version"]
        )
        for model in standing.models:
            ready.add_metric([model.name, str(model.version)], 1.0)
        yield ready

    def _read(self) -> EnclaveCounters | None:
        with self._lock:
            if time.monotonic() - self._read_at >= _FRESH_S:
                try:
                    self._enclave = self._control.counters()
                except CasemateError:
                    self._enclave = None
                self._read_at = time.monotonic()
            return self._enclave


def _add(family: HistogramMetricFamily, labels: list[str], buckets: Buckets) -> None:
    family.add_metric(labels, buckets.cumulated(), buckets.sum_us / 1_000_000)
