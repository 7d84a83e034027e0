"""What the samples of all rounds say: medians, spread, ratios within a round, cost."""

from __future__ import annotations

import math
import statistics
import tomllib
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

PRICES: Final = Path(__file__).parent / "prices.toml"
PEERS: Final = ("triton", "kserve", "mlserver")
# Unary calls by threads, and by tasks of one event loop: with a request each, or sharing them.
APART: Final = frozenset({"unary", "looped"})
UNARY: Final = APART | {"together"}


@dataclass(frozen=True)
class Figures:
    """Latencies in ms; processor seconds and joules (None if unknown) for 1,000 answers."""

    throughput: float
    p50: float
    p99: float
    server_cpu: float
    client_cpu: float
    joules: float | None

    @property
    def processors(self) -> float:
        """How many processors were busy: of several, a scheduler may leave some without work."""
        return self.throughput * (self.server_cpu + self.client_cpu) / 1000

    @classmethod
    def of(
        cls,
        latencies: Sequence[float],
        seconds: float,
        server_s: float,
        client_s: float,
        joules: float,
    ) -> Self:
        """``latencies`` ascending; ``joules`` is not a number where nobody knows."""
        count = len(latencies)
        return cls(
            throughput=count / seconds,
            p50=latencies[count // 2],
            p99=latencies[min(count - 1, count * 99 // 100)],
            server_cpu=1000 * server_s / count,
            client_cpu=1000 * client_s / count,
            joules=None if math.isnan(joules) else 1000 * joules / count,
        )


@dataclass(frozen=True)
class Sample:
    """One server under one load in one round."""

    round: int
    server: str
    model: str
    mode: str
    in_flight: int
    figures: Figures

    @property
    def case(self) -> tuple[str, str, int]:
        """What is compared between servers."""
        return self.model, self.mode, self.in_flight


@dataclass(frozen=True)
class Target:
    """``value`` is a median over the rounds of a ratio within one round."""

    name: str
    value: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the target is kept."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def medians(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """One row for each server and case: medians, and the spread of the throughput in percent."""
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        key = (sample.model, sample.mode, f"{sample.in_flight:04}", sample.server)
        groups.setdefault(key, []).append(sample)
    return [_row(group) for _, group in sorted(groups.items(), key=lambda item: item[0][:3])]


def _row(group: Sequence[Sample]) -> dict[str, Any]:
    first = group[0]
    throughput = [each.figures.throughput for each in group]
    middle = statistics.median(throughput)
    joules = [each.figures.joules for each in group if each.figures.joules is not None]
    return {
        "model": first.model,
        "mode": first.mode,
        "in_flight": first.in_flight,
        "server": first.server,
        "rounds": len(group),
        "throughput": middle,
        "spread_percent": 100 * (max(throughput) - min(throughput)) / middle if middle else 0.0,
        "p50_ms": statistics.median(each.figures.p50 for each in group),
        "p99_ms": statistics.median(each.figures.p99 for each in group),
        "server_cpu_s_per_1000": statistics.median(each.figures.server_cpu for each in group),
        "client_cpu_s_per_1000": statistics.median(each.figures.client_cpu for each in group),
        "processors": statistics.median(each.figures.processors for each in group),
        "joules_per_1000": statistics.median(joules) if joules else None,
    }


def targets(measured: Sequence[Sample]) -> list[Target]:
    """Judge what was measured; a case that was not is left out."""
    samples = best_clients(measured)
    found: list[Target | None] = []
    plain, plain_front = _named("plain"), _named("plain-front")
    for model, least in (("small", 0.90), ("mlp", 0.97), ("image", 0.97), ("slow", 0.97)):
        name = f"{model}, 32 in flight: throughput sealed / plain"
        found.append(_ratio(samples, name, (model, 32), plain, "throughput", least, at_least=True))
        name = f"{model}, 32 in flight: throughput sealed / plain-front"
        found.append(
            _ratio(samples, name, (model, 32), plain_front, "throughput", least, at_least=True)
        )
    for model, most in (("small", 1.3), ("image", 1.25)):
        name = f"{model}, 1 in flight: p50 sealed / plain"
        found.append(_ratio(samples, name, (model, 1), plain, "p50", most, at_least=False))
    for model, least in (("small", 1.5), ("mlp", 1.2), ("image", 1.0), ("slow", 1.0)):
        name = f"{model}, 32 in flight: throughput sealed / best peer"
        found.append(
            _ratio(samples, name, (model, 32), _best_peer, "throughput", least, at_least=True)
        )
        name = f"{model}, 1 in flight: p50 sealed / quickest peer"
        found.append(_ratio(samples, name, (model, 1), _quickest_peer, "p50", 1.0, at_least=False))
    ratios = _stream_ratios(best_clients(measured, APART))
    if ratios:
        name = "small, 32 in flight: throughput stream / unary"
        found.append(Target(name, statistics.median(ratios), 2.0, at_least=True))
    return [target for target in found if target is not None]


def beside(measured: Sequence[Sample]) -> list[tuple[str, float]]:
    """Ratios without a target: what the seal and the hop cost, on either way and at the least."""
    samples = best_clients(measured)
    found = []
    pairs = ("sealed", "plain-framed"), ("sealed-grpc", "plain"), ("sealed", "bare")
    for ours, other in pairs:
        for model, in_flight, figure in product(
            ("small", "mlp", "image", "slow"), (1, 32), ("throughput", "p50")
        ):
            if (figure == "p50") is (in_flight == 1):
                name = f"{model}, {in_flight} in flight: {figure} {ours} / {other}"
                ratios = _ratios(samples, (model, in_flight), ours, _named(other), figure)
                found += [(name, statistics.median(ratios))] if ratios else []
    if ratios := _stream_ratios(samples):
        name = "small, 32 in flight: throughput stream / unary or together"
        found.append((name, statistics.median(ratios)))
    return found


def best_clients(samples: Sequence[Sample], modes: Collection[str] = UNARY) -> list[Sample]:
    """Of unary calls in ``modes`` keep whichever got more answers, as unary; the other modes go."""
    best: dict[object, Sample] = {}
    for each in samples:
        if each.mode in UNARY and each.mode not in modes:
            continue
        same = replace(each, mode="unary") if each.mode in modes else each
        key = (same.round, same.server, same.case)
        known = best.get(key)
        if known is None or known.figures.throughput < same.figures.throughput:
            best[key] = same
    return list(best.values())


def _named(server: str) -> Callable[[Sequence[Sample]], Sample | None]:
    return lambda others: next((each for each in others if each.server == server), None)


def _best_peer(others: Sequence[Sample]) -> Sample | None:
    peers = [each for each in others if each.server in PEERS]
    return max(peers, key=lambda each: each.figures.throughput, default=None)


def _quickest_peer(others: Sequence[Sample]) -> Sample | None:
    peers = [each for each in others if each.server in PEERS]
    return min(peers, key=lambda each: each.figures.p50, default=None)


def _ratio(
    samples: Sequence[Sample],
    name: str,
    where: tuple[str, int],
    choose: Callable[[Sequence[Sample]], Sample | None],
    figure: str,
    bound: float,
    *,
    at_least: bool,
) -> Target | None:
    ratios = _ratios(samples, where, "sealed", choose, figure)
    return Target(name, statistics.median(ratios), bound, at_least) if ratios else None


def _ratios(
    samples: Sequence[Sample],
    where: tuple[str, int],
    server: str,
    choose: Callable[[Sequence[Sample]], Sample | None],
    figure: str,
) -> list[float]:
    """Ratios of ``server`` to what ``choose`` finds beside it, one for each round."""
    model, in_flight = where
    ratios = []
    for ours in samples:
        if (ours.server, *ours.case) != (server, model, "unary", in_flight):
            continue
        others = [each for each in samples if (each.round, each.case) == (ours.round, ours.case)]
        other = choose(others)
        if other is not None:
            ratios.append(getattr(ours.figures, figure) / getattr(other.figures, figure))
    return ratios


def _stream_ratios(samples: Sequence[Sample]) -> list[float]:
    ratios = []
    for stream in samples:
        if (stream.server, *stream.case) != ("sealed", "small", "stream", 32):
            continue
        for unary in samples:
            case = (unary.round, unary.server, *unary.case)
            if case == (stream.round, "sealed", "small", "unary", stream.in_flight):
                ratios.append(stream.figures.throughput / unary.figures.throughput)
    return ratios


def costs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """US dollars per million answers at 32 in flight, from the servers' processor time alone.

    As if every vCPU were always busy with this work, and as fast as the processor measured on.
    """
    instances = tomllib.loads(PRICES.read_text())["instance"]
    return [
        {
            "model": row["model"],
            "server": row["server"],
            "instance": each["name"],
            "dollars_per_million": each["dollars_per_hour"]
            / (3600 * each["vcpus"])
            * row["server_cpu_s_per_1000"]
            * 1000,
            "listed": str(each["listed"]),
            "source": each["source"],
        }
        for row in rows
        if row["mode"] == "unary" and row["in_flight"] == 32
        for each in instances
    ]


def as_json(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return everything as plain JSON values."""
    rows = medians(samples)
    judged = [{**asdict(target), "met": target.met} for target in targets(samples)]
    return {
        "medians": rows,
        "targets": judged,
        "costs": costs(rows),
        "samples": [asdict(sample) for sample in samples],
    }
