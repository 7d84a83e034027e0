"""Traces of calls, with OpenTelemetry's own exporters: in memory, and over HTTP to a collector."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from casemate_host.tracing import OtelTracer
from tests.support.framed import connect, framed_bench
from tests.support.host_bench import SERVICE, Bench, eventually, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TOKEN = "token-of-the-clinic-0001"
CALLER = f"""
[[caller]]
name = "clinic"
token_sha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]
"""


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What hosts that start from now on trace."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("casemate_host.host.tracer_of", lambda _: OtelTracer(provider))
    return exporter


@pytest.fixture
def bench(
    short_path: Path,
    chain: Chain,
    enclave: FakeEnclave,
    spans: InMemorySpanExporter,
) -> Iterator[Bench]:
    with serving(short_path, chain, enclave=CALLER) as made:
        yield made


def ask(bench: Bench, payload: bytes, *metadata: tuple[str, str]) -> None:
    call: Any = bench.channel.unary_unary(SERVICE + "Infer")
    with contextlib.suppress(grpc.RpcError):
        call(payload, timeout=60, metadata=[("authorization", f"Bearer {TOKEN}"), *metadata])


def test_a_call_is_a_span_with_its_steps_beneath(bench: Bench, spans: InMemorySpanExporter) -> None:
    ask(bench, b"planted-content")
    eventually(lambda: len(spans.get_finished_spans()) == 3)
    by_name = {span.name: span for span in spans.get_finished_spans()}
    root = by_name["casemate.v1.ConfidentialInference/Infer"]
    assert root.kind is SpanKind.SERVER
    assert root.parent is None
    assert root.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "casemate.v1.ConfidentialInference",
        "rpc.method": "Infer",
        "rpc.grpc.status_code": 0,
        "casemate.caller": "clinic",
    }
    for step in ("admission", "relay"):
        parent = by_name[step].parent
        assert parent is not None
        assert parent.span_id == root.context.span_id
    assert all("planted" not in span.to_json() for span in spans.get_finished_spans())


def test_a_callers_trace_goes_on_here(bench: Bench, spans: InMemorySpanExporter) -> None:
    ask(bench, b"x", ("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "planted=1"))
    eventually(lambda: len(spans.get_finished_spans()) == 3)
    for span in spans.get_finished_spans():
        assert f"{span.context.trace_id:032x}" == TRACE
        assert "planted" not in span.to_json()
    roots = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    parents = [f"{root.parent.span_id:016x}" for root in roots if root.parent is not None]
    assert parents == [PARENT]


@pytest.mark.parametrize("traceparent", ["", "00-0-0-01", "x" * 5000, f"00-{'0' * 32}-{PARENT}-01"])
def test_a_bad_traceparent_begins_a_trace_of_its_own(
    bench: Bench, spans: InMemorySpanExporter, traceparent: str
) -> None:
    ask(bench, b"x", ("traceparent", traceparent))
    eventually(lambda: len(spans.get_finished_spans()) == 3)
    roots = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert [root.parent for root in roots] == [None]


def test_a_refusal_says_its_code_and_quotes_nothing(
    bench: Bench, spans: InMemorySpanExporter
) -> None:
    ask(bench, b"refuse:REPLAYED planted-content")
    eventually(lambda: len(spans.get_finished_spans()) == 3)
    root = next(span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER)
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes is not None
    assert root.attributes["casemate.code"] == "REPLAYED"
    assert root.attributes["rpc.grpc.status_code"] == grpc.StatusCode.ABORTED.value[0]
    assert all("planted" not in span.to_json() for span in spans.get_finished_spans())


def test_spans_reach_a_collector_over_http(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    traces = f'\n[traces]\nendpoint = "{endpoint}"\nservice = "screening"\n'
    try:
        with serving(short_path, chain, enclave=CALLER + traces) as bench:
            ask(bench, b"planted-content")
    finally:
        collector.shutdown()
        collector.server_close()
        thread.join()
    sent = b"".join(received)
    assert b"screening" in sent
    assert b"ConfidentialInference/Infer" in sent
    assert b"planted" not in sent


def test_nothing_of_it_is_imported_where_nobody_wants_traces() -> None:
    code = (
        "import sys, casemate_host.__main__;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert ended.stdout.strip() == "[]"


def test_a_request_on_a_framed_connection_is_a_span_as_a_call_is(
    short_path: Path,
    chain: Chain,
    enclave: FakeEnclave,
    spans: InMemorySpanExporter,
) -> None:
    with (
        framed_bench(short_path, chain, enclave=CALLER) as bench,
        connect(bench, f"Bearer {TOKEN}") as single,
        connect(bench, f"Bearer {TOKEN}") as stream,
    ):
        assert single.exchange(b"planted-content") == b"planted-content"
        assert single.exchange(b"refuse:OPEN_FAILED x") == "OPEN_FAILED"
        stream.ask(b"planted-content")
        stream.take_many(1)
        eventually(lambda: len(spans.get_finished_spans()) == 7)
    roots = [span for span in spans.get_finished_spans() if span.parent is None]
    assert {span.name for span in roots} == {"casemate.v1.ConfidentialInference/Infer"}
    codes = sorted(str((span.attributes or {}).get("casemate.code", "OK")) for span in roots)
    assert codes == ["OK", "OK", "OPEN_FAILED"]
    assert all((span.attributes or {})["casemate.caller"] == "clinic" for span in roots)
    assert "planted" not in str([span.to_json() for span in spans.get_finished_spans()])


def test_a_stream_on_a_framed_connection_is_a_span_as_well(
    short_path: Path,
    chain: Chain,
    enclave: FakeEnclave,
    spans: InMemorySpanExporter,
) -> None:
    with framed_bench(short_path, chain, enclave=CALLER) as bench:
        for first in (b"planted-content", b"refuse:OPEN_FAILED x"):
            with connect(bench, f"Bearer {TOKEN}") as connection:
                connection.stream(first, b"")
                connection.ended()
        eventually(lambda: len(spans.get_finished_spans()) == 6)
    roots = [span for span in spans.get_finished_spans() if span.parent is None]
    assert {span.name for span in roots} == {"casemate.v1.ConfidentialInference/InferStream"}
    codes = sorted(str((span.attributes or {}).get("casemate.code", "OK")) for span in roots)
    assert codes == ["OK", "OPEN_FAILED"]
    assert all((span.attributes or {})["casemate.caller"] == "clinic" for span in roots)
    assert "planted" not in str([span.to_json() for span in spans.get_finished_spans()])
