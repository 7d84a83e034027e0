"""How the comparison of servers goes on where one of them fails."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, NoReturn

import pytest

from bench.peers import __main__ as peers
from bench.peers.servers import Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORKS = """
import json
for word in ("begin", "end"):
    print(word, flush=True)
print(json.dumps({"latencies": [1.0, 2.0], "seconds": 1.0, "refused": None}))
"""
REFUSED = WORKS.replace("None", '"OVERLOADED"')
ENDS = "raise SystemExit(1)"


@contextlib.contextmanager
def driven_by(program: str) -> Iterator[Running]:
    yield Running("", [], [sys.executable, "-c", program.replace("{", "{{").replace("}", "}}")])


def fails(error: Exception) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda _: fails(ChildProcessError("ended before it served")), "ended before"),
        (lambda _: fails(TimeoutError("does not serve")), "does not serve"),
        (lambda _: driven_by(REFUSED), "1 in flight: OVERLOADED"),
        (lambda _: driven_by(ENDS), "load generator ended early"),
    ],
)
def test_a_server_that_fails_is_named_and_the_others_are_measured(
    broken: object,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    servers = {"plain": lambda _: driven_by(WORKS), "triton": broken}
    monkeypatch.setattr(peers, "SERVERS", servers)
    monkeypatch.setattr(peers, "not_installed", lambda _: [])
    monkeypatch.setattr(peers, "versions", lambda _: {})
    monkeypatch.setattr(peers, "write_models", lambda _: None)
    report = tmp_path / "peers.json"
    words = ["--servers", *servers, "--models", "small", "--in-flight", "1", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["bench.peers", *words, "--json", str(report)])
    assert peers.main() == 1
    out = capsys.readouterr().out.splitlines()
    told = [line for line in out if line.startswith("not measured: round ")]
    assert len(told) == 2
    assert all("triton" in line and why in line for line in told)
    (row,) = json.loads(report.read_text())["medians"]
    assert (row["server"], row["rounds"], row["throughput"]) == ("plain", 2, 2.0)
