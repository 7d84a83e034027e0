"""Interleaved timing: every case once a round, so that a slow moment hits them all."""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times one case costs another, and the most that it may, if there is a target."""

    name: str
    value: float
    target: float | None

    @property
    def met(self) -> bool:
        """Whether the target is kept."""
        return self.target is None or self.value <= self.target


def measure(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, list[float]]:
    """Return the times of each case in microseconds, one for each round, after a warm-up.

    ``clock`` in nanoseconds: ``time.thread_time_ns`` counts what a case does and not its waiting.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(max(rounds // 20, 3)):
        for case in cases.values():
            case()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, case in cases.items():
                start = clock()
                case()
                times[name].append((clock() - start) / 1000)
    finally:
        gc.enable()
    return times


def ratio(times: Mapping[str, Sequence[float]], name: str, base: str, target: float) -> Ratio:
    """Return the median, over the rounds, of what ``name`` costs in terms of ``base``."""
    return Ratio(f"{name} / {base}", median_of(times[name], times[base]), target)


def median_of(times: Sequence[float], base: Sequence[float]) -> float:
    """Return the median, over the rounds, of one time in terms of the other."""
    return statistics.median(one / other for one, other in zip(times, base, strict=True))


def report(title: str, times: Mapping[str, Sequence[float]], ratios: Sequence[Ratio]) -> int:
    """Print medians and ratios, as JSON with ``--json``; return 1 if a target is missed."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    if "--json" in sys.argv[1:]:
        judged = [
            {"name": r.name, "value": round(r.value, 3), "target": r.target, "met": r.met}
            for r in ratios
        ]
        micros = {name: round(value, 1) for name, value in medians.items()}
        rounds = len(next(iter(times.values())))
        print(json.dumps({"bench": title, "rounds": rounds, "median_us": micros, "ratios": judged}))
    else:
        print(title)
        for name, median in medians.items():
            quick, *_, slow = statistics.quantiles(times[name], n=10)
            print(f"  {name:<34} {median:9.1f} us   (p10 {quick:.1f}, p90 {slow:.1f})")
        for r in ratios:
            verdict = "met" if r.met else "MISSED"
            against = "no target" if r.target is None else f"at most {r.target:g}: {verdict}"
            print(f"  {r.name:<50} {r.value:6.2f}   {against}")
    return 0 if all(r.met for r in ratios) else 1
