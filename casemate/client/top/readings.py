"""Reads a host's metrics page, and compares two readings.

The page is the operator's own; what it says is shown and decides nothing.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import Code, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.samples import Sample

STEPS: Final = ("admission", "relay", "unwrap", "open", "queue", "run", "seal")
_DURATION: Final = "casemate_step_duration_seconds"
_GAUGES: Final = frozenset(
    {
        *("casemate_serving", "casemate_evidence_age_seconds", "casemate_threads"),
        *("casemate_calls_under_way", "casemate_streams_under_way", "casemate_relay_waiting"),
        *("casemate_relay_busy", "process_resident_memory_bytes", "process_open_fds"),
    }
)


@dataclass(frozen=True, slots=True)
class Durations:
    """One step's histogram: (upper bound in seconds, count) cumulated, and the sum in seconds."""

    buckets: tuple[tuple[float, float], ...] = ()
    total_s: float = 0.0

    @property
    def count(self) -> float:
        """All durations."""
        return self.buckets[-1][1] if self.buckets else 0.0

    def since(self, before: Durations) -> Durations:
        """What was added since ``before``; all of it, if the counting began anew."""
        if before.count > self.count or len(before.buckets) != len(self.buckets):
            return self
        pairs = zip(self.buckets, before.buckets, strict=True)
        buckets = tuple((bound, now - then) for (bound, now), (_, then) in pairs)
        return Durations(buckets, self.total_s - before.total_s)

    def quantile(self, share: float) -> float | None:
        """The duration below which ``share`` of all lie, in seconds; None without any.

        Within a bucket durations are taken to be spread evenly; beyond the last bound it is that.
        """
        wanted, low, below = share * self.count, 0.0, 0.0
        for bound, count in self.buckets:
            if count >= wanted and count > below:
                if bound == float("inf"):
                    return low
                return low + (bound - low) * (wanted - below) / (count - below)
            low, below = bound, count
        return None


@dataclass(frozen=True, slots=True)
class Reading:
    """The page at one moment, in seconds of a monotonic clock."""

    at: float
    gauges: Mapping[str, float]
    calls: Mapping[tuple[str, str], float]  # (method, code): ended
    steps: Mapping[str, Durations]
    events: Mapping[str, float]  # of the enclave
    models: tuple[tuple[str, str], ...]  # (name, version)


def read(target: str) -> Reading:
    """Read the page at ``target`` (``host:port`` or a URL).

    Raises RequestError: HOST_UNREACHABLE, MALFORMED, INVALID_ARGUMENT without the extra.
    """
    url = target if target.startswith(("http://", "https://")) else f"http://{target}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=limits.METRICS_TIMEOUT_S) as page:  # noqa: S310 - http, as checked
            data: bytes = page.read(limits.METRICS_PAGE_MAX + 1)
    except (OSError, ValueError, urllib.error.URLError) as error:
        detail = f"{target}: no metrics page: {type(error).__name__}"
        raise RequestError(Code.HOST_UNREACHABLE, detail) from None
    if len(data) > limits.METRICS_PAGE_MAX:
        raise RequestError(Code.MALFORMED, f"{target}: the page is too large")
    return parse(data.decode("utf-8", "replace"))


def parse(text: str) -> Reading:
    """Parse the page's text; raises RequestError as ``read``."""
    try:
        from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - extra
    except ImportError:
        detail = "`casemate top` needs the extra: pip install 'casemate[top]'"
        raise RequestError(Code.INVALID_ARGUMENT, detail) from None
    try:
        families = text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples]
    except (ValueError, KeyError, IndexError):
        raise RequestError(Code.MALFORMED, "not a metrics page") from None
    return _reading(samples)


def _reading(samples: Iterable[Sample]) -> Reading:
    gauges: dict[str, float] = {}
    calls: dict[tuple[str, str], float] = {}
    events: dict[str, float] = {}
    buckets: dict[str, list[tuple[float, float]]] = defaultdict(list)
    sums: dict[str, float] = {}
    models = []
    for sample in samples:
        labels = sample.labels
        match sample.name:
            case "casemate_calls_total":
                calls[labels.get("method", "?"), labels.get("code", "?")] = sample.value
            case "casemate_enclave_events_total":
                events[labels.get("event", "?")] = sample.value
            case "casemate_model_ready":
                models.append((labels.get("model", "?"), labels.get("version", "?")))
            case name if name == f"{_DURATION}_bucket":
                buckets[labels.get("step", "?")].append((float(labels["le"]), sample.value))
            case name if name == f"{_DURATION}_sum":
                sums[labels.get("step", "?")] = sample.value
            case name if name in _GAUGES:
                gauges[name] = sample.value
    steps = {
        step: Durations(tuple(sorted(items)), sums.get(step, 0.0))
        for step, items in buckets.items()
    }
    return Reading(time.monotonic(), gauges, calls, steps, events, tuple(models))


@dataclass(frozen=True, slots=True)
class Span:
    """What happened between two readings."""

    now: Reading
    seconds: float
    calls: Mapping[tuple[str, str], float]  # a second
    steps: Mapping[str, Durations]

    @property
    def answered(self) -> float:
        """Answers a second."""
        return sum(rate for (_, code), rate in self.calls.items() if code == "OK")

    @property
    def refused(self) -> float:
        """Refusals a second."""
        return sum(rate for (_, code), rate in self.calls.items() if code != "OK")


def between(before: Reading, now: Reading) -> Span:
    """Compare two readings of one host; after its restart everything counts as new."""
    seconds = max(now.at - before.at, 1e-3)
    calls = {
        key: (count if count < before.calls.get(key, 0) else count - before.calls.get(key, 0))
        / seconds
        for key, count in now.calls.items()
    }
    steps = {
        step: durations.since(before.steps.get(step, Durations()))
        for step, durations in now.steps.items()
    }
    return Span(now, seconds, calls, steps)
