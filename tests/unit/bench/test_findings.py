"""What the comparison of servers concludes from its samples."""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from bench.peers import processor
from bench.peers.findings import Figures, Sample, as_json, beside, costs, medians, targets
from bench.peers.models import MODELS, header_of, write_models
from casemate.client.plot import bar_plot

if TYPE_CHECKING:
    from pathlib import Path


def sample(number: int, server: str, throughput: float, **where: object) -> Sample:
    p50 = 1000 / throughput
    figures = Figures(throughput, p50, 2 * p50, server_cpu=0.5, client_cpu=0.1, joules=None)
    case = {"model": "small", "mode": "unary", "in_flight": 32, **where}
    return Sample(number, server, figures=figures, **case)  # type: ignore[arg-type]


def value(samples: list[Sample], name: str) -> float:
    return next(target.value for target in targets(samples) if target.name == name)


def test_ratios_are_within_a_round_and_their_median_counts() -> None:
    """The machine is twice as slow in the second round, for everybody."""
    samples = []
    for number, (ours, plain) in enumerate([(900, 1000), (460, 500), (880, 1000)]):
        samples += [sample(number, "sealed", ours), sample(number, "plain", plain)]
    found = value(samples, "small, 32 in flight: throughput sealed / plain")
    assert found == pytest.approx(0.9)


def test_the_best_peer_is_chosen_in_each_round() -> None:
    samples = [sample(0, "sealed", 3000), sample(0, "triton", 2000), sample(0, "kserve", 1000)]
    samples += [sample(0, "plain", 9000)]  # no peer
    name = "small, 32 in flight: throughput sealed / best peer"
    assert value(samples, name) == pytest.approx(1.5)
    (target,) = (each for each in targets(samples) if each.name == name)
    assert target.met
    slower = [sample(0, "sealed", 2900), *samples[1:]]
    assert not next(each for each in targets(slower) if each.name == name).met


def test_what_has_no_target_is_told_beside_them() -> None:
    samples = [
        sample(0, "sealed", 900),
        sample(0, "plain-framed", 1000),
        sample(0, "bare", 1800),
        sample(0, "sealed-grpc", 600, in_flight=1),
        sample(0, "plain", 1200, in_flight=1),
    ]
    assert dict(beside(samples)) == {
        "small, 32 in flight: throughput sealed / plain-framed": pytest.approx(0.9),
        "small, 32 in flight: throughput sealed / bare": pytest.approx(0.5),
        "small, 1 in flight: p50 sealed-grpc / plain": pytest.approx(2.0),
    }


def test_latency_is_compared_with_the_quickest_peer() -> None:
    samples = [
        sample(0, server, rate, in_flight=1)
        for server, rate in (("sealed", 500), ("triton", 250), ("mlserver", 1000))
    ]
    name = "small, 1 in flight: p50 sealed / quickest peer"
    assert value(samples, name) == pytest.approx(2.0)


def test_streams_are_judged_by_unary_calls_of_the_same_round() -> None:
    samples = [
        sample(0, "sealed", 1000),
        sample(0, "sealed", 2500, mode="stream"),
        sample(0, "sealed", 9000, mode="stream", in_flight=1),
    ]
    name = "small, 32 in flight: throughput stream / unary"
    assert value(samples, name) == pytest.approx(2.5)


def test_each_of_ours_is_judged_at_its_better_client() -> None:
    samples = [
        sample(0, "sealed", 1000),
        sample(0, "sealed", 1800, mode="looped"),
        sample(0, "plain", 2000),
        sample(0, "plain", 1500, mode="looped"),
        sample(0, "sealed", 2700, mode="stream"),
    ]
    assert value(samples, "small, 32 in flight: throughput sealed / plain") == pytest.approx(0.9)
    assert value(samples, "small, 32 in flight: throughput stream / unary") == pytest.approx(1.5)


def test_questions_that_share_a_request_are_unary_calls_but_for_streams() -> None:
    """A stream is judged by calls with a request each, and stated beside the others."""
    samples = [
        sample(0, "sealed", 1000),
        sample(0, "sealed", 1500, mode="looped"),
        sample(0, "sealed", 2400, mode="together"),
        sample(0, "sealed", 3000, mode="stream"),
        sample(0, "plain", 2000),
    ]
    assert value(samples, "small, 32 in flight: throughput sealed / plain") == pytest.approx(1.2)
    assert value(samples, "small, 32 in flight: throughput stream / unary") == pytest.approx(2)
    stated = dict(beside(samples))
    name = "small, 32 in flight: throughput stream / unary or together"
    assert stated[name] == pytest.approx(1.25)


def test_what_was_not_measured_is_not_judged() -> None:
    assert targets([sample(0, "sealed", 1000)]) == []


def test_spread_and_cost() -> None:
    samples = [sample(number, "sealed", rate) for number, rate in enumerate((900, 1000, 1100))]
    (row,) = medians(samples)
    assert row["throughput"] == 1000
    assert row["spread_percent"] == pytest.approx(20)
    assert row["processors"] == pytest.approx(0.6)  # 1,000 a second at 0.5 + 0.1 s for 1,000
    cost = {each["instance"]: each["dollars_per_million"] for each in costs([row])}
    # 0.5 s for 1,000 is 500 s for a million, of a quarter of an instance.
    assert cost["c7i.xlarge"] == pytest.approx(500 * 0.1785 / 4 / 3600)
    assert json.dumps(as_json(samples))


def test_figures_of_one_run() -> None:
    figures = Figures.of([float(n) for n in range(1, 101)], 10.0, 2.0, 1.0, math.nan)
    assert (figures.throughput, figures.p50, figures.p99) == (10.0, 51.0, 100.0)
    assert (figures.server_cpu, figures.client_cpu, figures.joules) == (20.0, 10.0, None)
    assert Figures.of([1.0], 1.0, 0.0, 0.0, 3.0).joules == 3000.0


def test_processor_time_is_read_of_living_processes() -> None:
    own = processor.family(os.getpid())
    assert os.getpid() in own
    before = processor.seconds(own)
    sum(range(3_000_000))
    assert processor.seconds(own) >= before > 0
    assert processor.seconds({2**22 + 1}) == 0


def test_models_are_what_their_headers_state(tmp_path: Path) -> None:
    write_models(tmp_path)
    for name, model in MODELS.items():
        content = (tmp_path / f"{name}.onnx").read_bytes()
        assert header_of(name, content).inputs == model.input_specs
        assert {key: row.shape[1:] for key, row in model.row().items()} == model.inputs
    assert set(json.loads((tmp_path / "models.json").read_text())) == set(MODELS)


def test_a_plot_has_a_bar_for_each_figure() -> None:
    image = ET.fromstring(bar_plot("t", "u", {"1": {"a": 1.0}, "8": {"a": 2.0, "b": 1.0}}))
    assert len(image.findall("{*}rect")) == 1 + 4 + 2  # background, bars (one of nothing), legend
