"""What `casemate top` makes of a metrics page, and what reaches the terminal."""

from __future__ import annotations

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from rich.console import Console

from casemate import limits
from casemate.client.cli import main
from casemate.client.top.readings import Durations, between, parse, read
from casemate.client.top.view import screen, sparkline
from casemate.errors import Code, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = """
# TYPE casemate_calls counter
casemate_calls_total{{method="Infer",code="OK"}} {ok}
casemate_calls_total{{method="Infer",code="OVERLOADED"}} {shed}
# TYPE casemate_step_duration_seconds histogram
casemate_step_duration_seconds_bucket{{step="run",le="0.001"}} {ok}
casemate_step_duration_seconds_bucket{{step="run",le="0.01"}} {ok}
casemate_step_duration_seconds_bucket{{step="run",le="+Inf"}} {ok}
casemate_step_duration_seconds_sum{{step="run"}} {seconds}
casemate_serving 1
casemate_evidence_age_seconds 12
casemate_relay_waiting 3
casemate_model_ready{{model="{model}",version="2"}} 1
process_resident_memory_bytes 1048576
"""


def page(ok: int, shed: int = 0, model: str = "wdbc") -> str:
    return PAGE.format(ok=ok, shed=shed, seconds=ok * 0.0005, model=model)


def shown(text: str) -> str:
    output = io.StringIO()
    span = between(parse(page(0)), parse(text))
    Console(width=120, file=output).print(screen("host:1", span, [1.0, 2.0]))
    return output.getvalue()


def test_rates_are_between_two_readings() -> None:
    span = between(parse(page(100)), parse(page(150, shed=10)))
    assert span.answered * span.seconds == pytest.approx(50)
    assert span.refused * span.seconds == pytest.approx(10)
    assert span.steps["run"].count == 50


def test_a_restarted_host_counts_from_nothing() -> None:
    span = between(parse(page(1000)), parse(page(20)))
    assert span.answered * span.seconds == pytest.approx(20)
    assert span.steps["run"].count == 20


def test_quantiles_are_within_their_bucket() -> None:
    durations = Durations(((0.001, 50.0), (0.01, 100.0), (float("inf"), 100.0)), 1.0)
    assert durations.quantile(0.25) == pytest.approx(0.0005)
    assert durations.quantile(0.5) == pytest.approx(0.001)
    assert durations.quantile(0.75) == pytest.approx(0.0055)
    assert Durations(((0.001, 0.0), (float("inf"), 4.0))).quantile(0.5) == 0.001
    assert Durations().quantile(0.5) is None


def test_the_screen_has_what_one_looks_for() -> None:
    text = shown(page(50, shed=7))
    for part in ("SERVING", "evidence 12 s old", "OVERLOADED", "run", "3 waiting", "wdbc:2"):
        assert part in text


def test_a_page_steers_no_terminal() -> None:
    text = shown(page(1, model="\x1b]0;evil\x07[bold]x[/bold]"))
    assert "\x1b" not in text
    assert "[bold]x" in text


def test_sparklines_are_as_high_as_their_highest() -> None:
    assert sparkline([0, 4, 8]) == " ▄█"
    assert sparkline([]) == ""


@pytest.fixture
def served() -> Iterator[dict[str, bytes]]:
    content = {"page": page(5).encode()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content["page"])

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    content["target"] = f"127.0.0.1:{server.server_port}".encode()
    yield content
    server.shutdown()
    server.server_close()
    thread.join()


def test_one_screen_and_one_json_line(served: dict[str, bytes]) -> None:
    target = served["target"].decode()
    once = CliRunner().invoke(main, ["top", target, "--once", "--every", "0.2"])
    assert once.exit_code == 0
    assert "SERVING" in once.output
    line = CliRunner().invoke(main, ["top", target, "--once", "--every", "0.2", "--json"])
    assert json.loads(line.output)["models"] == ["wdbc:2"]


def test_what_is_no_page_is_one_clear_error(served: dict[str, bytes]) -> None:
    target = served["target"].decode()
    for content, code in (
        (b'casemate_serving{ "', Code.MALFORMED),
        (b"#" * (limits.METRICS_PAGE_MAX + 1), Code.MALFORMED),
    ):
        served["page"] = content
        with pytest.raises(RequestError) as raised:
            read(target)
        assert raised.value.code is code
    silent = CliRunner().invoke(main, ["top", "127.0.0.1:9", "--once"])
    assert silent.exit_code == 3
    assert "HOST_UNREACHABLE" in silent.output
    for wrong in ("file:///etc/passwd", "nonsense", "http://[::"):
        with pytest.raises(RequestError):
            read(wrong)
