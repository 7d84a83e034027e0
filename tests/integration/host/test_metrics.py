"""The metrics page: what it says, to whom, and that nothing else is in it (THREATS H16)."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from casemate import limits
from casemate.errors import Code
from tests.support.fake_enclave import seal
from tests.support.host_bench import Bench, eventually, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration

Sample = tuple[str, frozenset[tuple[str, str]]]


def url(bench: Bench, path: str = "/metrics") -> str:
    return f"http://{bench.host.metrics_address}{path}"


def page(bench: Bench) -> str:
    with urllib.request.urlopen(url(bench), timeout=60) as answer:
        body: str = answer.read().decode()
    return body


def samples(bench: Bench) -> dict[Sample, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page(bench))
        for sample in family.samples
    }


def value(bench: Bench, name: str, **labels: str) -> float | None:
    return samples(bench).get((name, frozenset(labels.items())))


@pytest.fixture
def bench(short_path: Path, chain: Chain, enclave: FakeEnclave) -> Iterator[Bench]:
    models = f'models = ["{seal(short_path / "one.sealed").name}"]\n'
    metrics = '[metrics]\nlisten = "127.0.0.1:0"'
    with serving(short_path, chain, enclave=models + metrics) as made:
        yield made


def test_calls_are_counted_by_method_and_code(bench: Bench) -> None:
    for _ in range(3):
        bench.infer(b"x")
    with contextlib.suppress(grpc.RpcError):
        bench.infer(b"refuse:REPLAYED")
    assert value(bench, "casemate_calls_total", method="Infer", code="OK") == 3
    assert value(bench, "casemate_calls_total", method="Infer", code="REPLAYED") == 1
    who = {"caller": "anonymous"}
    assert value(bench, "casemate_caller_calls_total", code="OK", **who) == 3
    assert value(bench, "casemate_caller_calls_total", code="REPLAYED", **who) == 1
    assert value(bench, "casemate_call_duration_seconds_count") == 3
    for step in ("admission", "relay"):
        assert value(bench, "casemate_step_duration_seconds_count", step=step) == 3


def test_the_enclaves_counters_and_steps_are_shown_with_the_hosts(bench: Bench) -> None:
    assert value(bench, "casemate_enclave_events_total", event="requests") == 7
    name = "casemate_step_duration_seconds_bucket"
    assert value(bench, name, step="run", le="5e-05") == 2
    assert value(bench, name, step="run", le="60.0") == 2
    assert value(bench, name, step="run", le="+Inf") == 3
    assert value(bench, "casemate_step_duration_seconds_sum", step="run") == 70.00009


def test_the_state_of_the_service_is_shown(bench: Bench) -> None:
    eventually(lambda: value(bench, "casemate_model_ready", model="wdbc", version="2") == 1)
    shown = samples(bench)
    assert shown["casemate_serving", frozenset()] == 1
    assert 0 <= shown["casemate_evidence_age_seconds", frozenset()] < 60
    assert shown["casemate_threads", frozenset()] > 4
    assert shown["process_open_fds", frozenset()] > 4


def test_what_the_enclave_does_not_say_is_absent(bench: Bench, enclave: FakeEnclave) -> None:
    enclave.stop()
    eventually(lambda: value(bench, "casemate_serving") == 0)
    eventually(lambda: "casemate_enclave_events" not in page(bench))
    assert value(bench, "casemate_evidence_age_seconds") is None


@pytest.mark.parametrize(
    ("counters", "histograms"),
    [
        ({"planted name": 1}, {}),
        ({"requests": b"planted"}, {}),
        ({}, {"run": {"counts": [1], "sum_us": 1}}),
        ({}, {"run": {"counts": ["planted"] * 19, "sum_us": 1}}),
    ],
)
def test_h16_counters_that_break_the_specification_are_not_shown(
    bench: Bench,
    enclave: FakeEnclave,
    counters: dict[str, int],
    histograms: dict[str, object],
) -> None:
    time.sleep(1.1)  # the reading before is kept for a second
    enclave.counters, enclave.histograms = counters, histograms
    text = page(bench)
    assert "planted" not in text
    assert "casemate_enclave_events" not in text


def test_h16_the_page_quotes_no_request(bench: Bench) -> None:
    bench.infer(b"planted-payload")
    with contextlib.suppress(grpc.RpcError):
        bench.infer(b"refuse:OPEN_FAILED planted-payload")
    text = page(bench)
    assert "planted" not in text
    labels = set(re.findall(r'(\w+)="', text))
    assert labels <= {
        *("method", "code", "caller", "step", "le", "event", "model", "version"),
        *("implementation", "major", "minor", "patchlevel"),  # of the interpreter
    }
    codes = set(re.findall(r'code="(\w+)"', text))
    assert codes <= {str(code) for code in Code}


def test_nothing_else_is_served(bench: Bench) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(url(bench, "/"), timeout=60)
    assert raised.value.code == 404
    raised.value.close()


def test_silent_readers_are_bounded(bench: Bench) -> None:
    host, _, port = (bench.host.metrics_address or "").partition(":")
    with contextlib.ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection((host, int(port)), 60))
            for _ in range(limits.METRICS_READERS_MAX)
        ]
        for channel in held:
            channel.sendall(b"GET")
        eventually(lambda: _closed(host, int(port)))
    eventually(lambda: _serves(bench))


def _serves(bench: Bench) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):  # not before they have gone
        return value(bench, "casemate_serving") == 1
    return False


def _closed(host: str, port: int) -> bool:
    with socket.create_connection((host, port), 60) as channel:
        channel.settimeout(0.2)
        try:
            return channel.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False
