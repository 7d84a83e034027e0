"""A closed loop of calls: what is counted, and what a person sees of it."""

from __future__ import annotations

import json
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casemate.client.load import Load, run_load
from casemate.client.plot import bar_plot, latency_plot
from casemate.errors import CasemateError, Code, RequestError
from tests.support import evidence as made
from tests.support.cli import refusal, run_any
from tests.support.nitro_pki import NOW
from tests.support.patience import patiently
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("casemate.client.sessions._now", lambda: NOW)
    with Service() as running:
        yield running


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "trust.toml").write_text(made.policy().to_toml())
    np.save(tmp_path / "x.npy", np.array([1.5, -2.0], np.float32))
    return tmp_path


def taking(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def test_only_what_ends_within_the_time_counts() -> None:
    def measured(seconds: float) -> Load:
        marks: list[int] = []
        load = run_load(
            [taking(0.02)] * 3,
            seconds=seconds,
            warm_up_s=0.2,
            measuring=lambda: marks.append(1),
        )
        assert load.in_flight == 3
        # No more fit, however idle the machine.
        assert len(load.latencies) <= 3 * (seconds / 0.02 + 1)
        assert list(load.latencies) == sorted(load.latencies)
        assert marks == [1, 1]
        assert load.throughput == pytest.approx(len(load.latencies) / seconds)
        return load

    assert patiently(measured, lambda load: load.latencies).latencies[0] >= 20


def test_each_call_has_a_thread_of_its_own() -> None:
    most, now, lock = [0], [0], threading.Lock()

    def call() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1

    def together(seconds: float) -> int:
        run_load([call] * 5, seconds=seconds, warm_up_s=0)
        return most[0]

    assert patiently(together, lambda count: count == 5) == 5


def test_refusals_are_counted_and_slowed_down() -> None:
    asked: list[int] = []

    def call() -> None:
        asked.append(1)
        raise RequestError(Code.OVERLOADED, "too many")

    def refused(seconds: float) -> Load:
        asked.clear()
        load = run_load([call], seconds=seconds, warm_up_s=0)
        assert len(asked) <= seconds / 0.05 + 1
        return load

    load = patiently(refused, lambda load: load.refused)
    assert load.refused["OVERLOADED"] >= 1
    with pytest.raises(CasemateError, match="no call was answered"):
        load.percentile(50)


def test_a_fault_of_the_caller_is_raised() -> None:
    def call() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_load([call], seconds=0.1, warm_up_s=0)


def test_percentiles_are_of_the_nearest_rank() -> None:
    load = Load(1, 1.0, [float(n) for n in range(100)], Counter())
    assert [load.percentile(p) for p in (0, 50, 99, 99.9, 100)] == [0, 50, 99, 99, 99]
    assert load.as_json()["throughput"] == 100.0


def test_plots_are_images_with_what_they_show() -> None:
    bars = bar_plot("a < b", "answers a second", {"1 in flight": {"x": 1.0, "y": 2.0}})
    lines = latency_plot("times", {"1 in flight": [0.5, 1, 200], "none": []})
    for text, shape, count in ((bars, "rect", 5), (lines, "polyline", 1)):
        image = ET.fromstring(text)
        assert image.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(image.findall(f"{{*}}{shape}")) == count
    assert "a &lt; b" in bars
    assert "1 in flight" in lines


def bench(
    service: Service,
    files: Path,
    *arguments: str | Path,
    enough: Callable[[Result], bool] = lambda result: result.exit_code == 0,
) -> Result:
    """Run the command for long enough that what a test is about happens within the time."""

    def measure(seconds: float) -> Result:
        service.evidence_calls = 0
        return run_any(
            *("bench", service.target, "wdbc", "--policy", files / "trust.toml"),
            *("--input", f"x={files / 'x.npy'}", "--seconds", str(seconds)),
            *arguments,
        )

    result = patiently(measure, enough)
    assert result.exit_code == 0, result.output
    return result


def test_bench_measures_sealed_calls(service: Service, files: Path) -> None:
    in_flight = ("--in-flight", "1", "--in-flight", "2")
    found = json.loads(
        bench(service, files, *in_flight, "--json", "--plot", files / "plot.svg").stdout
    )
    assert [each["in_flight"] for each in found["runs"]] == [1, 2]
    for each in found["runs"]:
        assert each["answers"] > 0
        assert each["latency_ms"]["p50"] <= each["latency_ms"]["p99"]
        assert each["refused"] == {}
    assert "2 in flight" in (files / "plot.svg").read_text()
    assert service.evidence_calls == 1
    table = bench(service, files, *in_flight).stdout.splitlines()
    assert table[0].split()[:3] == ["in", "flight", "answers/s"]
    assert [line.split()[0] for line in table[1:]] == ["1", "2"]


def test_bench_shows_refusals(service: Service, files: Path) -> None:
    answered = []

    def seldom(request: bytes) -> bytes:
        answered.append(1)
        if len(answered) % 2 == 0:
            raise RequestError(Code.OVERLOADED, "too many")
        return service.answer(request)

    service.on_request = seldom

    def refused(result: Result) -> bool:
        return "refused with 1 in flight: OVERLOADED" in result.stderr

    assert refused(bench(service, files, "--in-flight", "1", enough=refused))


def test_bench_of_nothing_is_refused_at_once(service: Service, files: Path) -> None:
    arguments = ("--policy", files / "trust.toml", "--input", f"x={files / 'x.npy'}")
    assert "UNKNOWN_MODEL" in refusal("bench", service.target, "other", *arguments)
    assert service.requests == []
