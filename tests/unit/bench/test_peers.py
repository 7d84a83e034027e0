"""How the comparison of servers goes on where one of them fails."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from bench.peers import __main__ as peers
from bench.peers.servers import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WORKS = """
import json
for word in ("begin", "end"):
    print(word, flush=True)
print(json.dumps({"latencies": [1.0, 2.0], "seconds": 1.0, "refused": None}))
"""
REFUSED = WORKS.replace("None", '"OVERLOADED"')
ENDS = "raise SystemExit(1)"
ENDS_LATE = WORKS[: WORKS.index("print(json")] + ENDS


@contextlib.contextmanager
def driven_by(program: str) -> Iterator[Running]:
    yield Running("", [], [sys.executable, "-c", program.replace("{", "{{").replace("}", "}}")])


def fails(error: Exception) -> NoReturn:
    raise error


@pytest.fixture
def measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], list[dict[str, Any]]]]:
    """Run the comparison over ``servers``: its status, what was not measured, its medians."""

    def run(
        servers: dict[str, object], *options: str
    ) -> tuple[int, list[str], list[dict[str, Any]]]:
        monkeypatch.setattr(peers, "SERVERS", servers)
        monkeypatch.setattr(peers, "not_installed", lambda _: [])
        monkeypatch.setattr(peers, "versions", lambda _: {})
        monkeypatch.setattr(peers, "write_models", lambda _: None)
        report = tmp_path / "peers.json"
        words = ["--servers", *servers, "--models", "small", "--in-flight", "1", "--rounds", "2"]
        monkeypatch.setattr(sys, "argv", ["bench.peers", *words, "--json", str(report), *options])
        status = peers.main()
        lines = capsys.readouterr().out.splitlines()
        told = [line for line in lines if line.startswith("not measured: ")]
        return status, told, json.loads(report.read_text())["medians"]

    return run


NEVER_SERVES: list[tuple[object, str]] = [
    (lambda _: fails(ChildProcessError("ended before it served")), "ended before"),
    (lambda _: fails(TimeoutError("does not serve")), "does not serve"),
]
SERVES_BADLY: list[tuple[object, str]] = [
    (lambda _: driven_by(REFUSED), "1 in flight: OVERLOADED"),
    (lambda _: driven_by(ENDS), "load generator ended early"),
    (lambda _: driven_by(ENDS_LATE), "1 in flight: no answer"),
]


@pytest.mark.parametrize(("broken", "why"), NEVER_SERVES + SERVES_BADLY)
def test_a_server_that_fails_is_named_and_the_others_are_measured(
    broken: object, why: str, measure: Callable[..., Any]
) -> None:
    status, told, medians = measure({"plain": lambda _: driven_by(WORKS), "triton": broken})
    assert status == 1
    assert len(told) == 2
    assert all("round " in line and "triton" in line and why in line for line in told)
    (row,) = medians
    assert (row["server"], row["rounds"], row["throughput"]) == ("plain", 2, 2.0)


@pytest.mark.parametrize(
    ("broken", "why", "times"),
    [(*each, 1) for each in NEVER_SERVES] + [(*each, 2) for each in SERVES_BADLY],
)
def test_so_it_is_where_servers_are_kept(
    broken: object, why: str, times: int, measure: Callable[..., Any]
) -> None:
    servers = {"plain": lambda _: driven_by(WORKS), "triton": broken}
    status, told, medians = measure(servers, "--keep")
    assert status == 1
    assert len(told) == times
    assert all("triton" in line and why in line for line in told)
    (row,) = medians
    assert (row["server"], row["rounds"], row["throughput"]) == ("plain", 2, 2.0)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ([], "+one -one +two -two +two -two +one -one"),
        (["--keep"], "+one +two -two -one"),
    ],
)
def test_kept_servers_start_once_and_end_together(
    options: list[str], order: str, measure: Callable[..., Any]
) -> None:
    seen = []

    @contextlib.contextmanager
    def server(name: str) -> Iterator[Running]:
        seen.append(f"+{name}")
        with driven_by(WORKS) as running:
            yield running
        seen.append(f"-{name}")

    status, told, medians = measure(
        {"one": lambda _: server("one"), "two": lambda _: server("two")}, *options
    )
    assert (status, told) == (0, [])
    assert [row["rounds"] for row in medians] == [2, 2]
    assert seen == order.split()


def test_where_no_server_starts_it_says_so(measure: Callable[..., Any]) -> None:
    broken = {"plain": lambda _: fails(TimeoutError("does not serve"))}
    assert measure(broken, "--keep") == (1, ["not measured: start: plain: does not serve"], [])
