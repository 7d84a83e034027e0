"""Casemate beside the servers that people use: `make bench-peers`, or `python -m bench.peers`.

Each round starts each server in turn, in another order each time, and puts every load on every
model of it. With ``--keep`` all start once and each load goes to one after the other: the others
are idle meanwhile, and what is compared lies seconds apart, as a machine whose pace changes needs.
Ratios are within a round; what is reported are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from bench.peers import findings, processor
from bench.peers.findings import Figures, Sample
from bench.peers.models import MODELS, write_models
from bench.peers.servers import ROOT, SERVERS, Running, not_installed, versions
from casemate.client.plot import bar_plot

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHORT: Final = frozenset({"small", "mlp"})  # models whose questions share requests


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=list(SERVERS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--in-flight", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before each")
    parser.add_argument(
        "--keep", action="store_true", help="start each server once, for all rounds"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plots", type=Path, help="write SVG images to this folder")
    return parser.parse_args()


def _measure(
    server: Running, mode: str, model: str, in_flight: int, options: argparse.Namespace
) -> Figures:
    """Drive one load and return its figures."""
    command = server.command(mode, model, in_flight, options.seconds, options.warm_up)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as driver:
        pids = processor.family(*server.roots)
        marks = [_clocks(driver, word, pids) for word in ("begin", "end")]
        printed = driver.communicate()[0]
    found = json.loads(printed) if driver.returncode == 0 else {}
    if not found.get("latencies") or found.get("refused"):
        detail = found.get("refused") or "no answer"
        raise ChildProcessError(f"{mode}, {model}, {in_flight} in flight: {detail}")
    server_s, client_s, joules = (after - before for before, after in zip(*marks, strict=True))
    return Figures.of(found["latencies"], found["seconds"], server_s, client_s, joules)


def _clocks(driver: subprocess.Popen[str], word: str, pids: set[int]) -> tuple[float, ...]:
    """Processor seconds of server and driver and joules, at the moment the driver says ``word``."""
    if driver.stdout is not None:
        _await_word(driver.stdout, word)
    return processor.seconds(pids), processor.seconds({driver.pid}), processor.energy()


def _await_word(stream: IO[str], word: str) -> None:
    while line := stream.readline():
        if line.strip() == word:
            return
    raise ChildProcessError("the load generator ended early")


def _run(folder: Path, options: argparse.Namespace) -> tuple[list[Sample], list[str]]:
    """Return all samples, and what could not be measured: an hour's work is not lost with it."""
    samples: list[Sample] = []
    failures: list[str] = []
    (_kept if options.keep else _in_turn)(folder, options, samples, failures)
    return samples, failures


def _in_turn(
    folder: Path, options: argparse.Namespace, samples: list[Sample], failures: list[str]
) -> None:
    for number in range(options.rounds):
        for name in _turned(options.servers, number):
            here = f"round {number + 1}/{options.rounds}: {name}"
            with _noted(here, failures), SERVERS[name](folder) as server:
                for model, load in product(options.models, options.in_flight):
                    samples.extend(_measured(number, name, server, model, load, options))


def _kept(
    folder: Path, options: argparse.Namespace, samples: list[Sample], failures: list[str]
) -> None:
    running: dict[str, Running] = {}
    with contextlib.ExitStack() as stack:
        for name in options.servers:
            with _noted(f"start: {name}", failures):
                running[name] = stack.enter_context(SERVERS[name](folder))
        for number in range(options.rounds):
            for model, load in product(options.models, options.in_flight):
                for name in _turned(list(running), number):
                    here = f"round {number + 1}/{options.rounds}: {model}, {load}: {name}"
                    with _noted(here, failures):
                        samples.extend(_measured(number, name, running[name], model, load, options))


def _turned(names: list[str], number: int) -> list[str]:
    """Return ``names`` in another order for each round."""
    turn = number % max(1, len(names))
    return names[turn:] + names[:turn]


@contextlib.contextmanager
def _noted(here: str, failures: list[str]) -> Iterator[None]:
    """Say where the bench is, and note what cannot be measured there."""
    print(here, file=sys.stderr, flush=True)
    try:
        yield
    except (ChildProcessError, TimeoutError) as error:
        failures.append(f"{here}: {error}")
        print(failures[-1], file=sys.stderr, flush=True)


def _measured(
    number: int,
    name: str,
    server: Running,
    model: str,
    load: int,
    options: argparse.Namespace,
) -> Iterator[Sample]:
    for mode in server.modes:
        if not _is_idle(mode, model, load):
            figures = _measure(server, mode, model, load, options)
            yield Sample(number, name, model, mode, load, figures)


def _is_idle(mode: str, model: str, load: int) -> bool:
    """Whether this is another mode by another name.

    One call needs no loop, and long questions share no request (SPEC 5.10).
    """
    alone = load == 1 and mode in {"looped", "together"}
    return alone or (mode == "together" and model not in _SHORT)


def _print(found: dict[str, object], samples: list[Sample]) -> None:
    rows = findings.medians(samples)
    head = f"{'model':7}{'mode':9}{'in flight':>10}  {'server':12}{'answers/s':>10}{'spread':>8}"
    print(f"{head}{'p50 ms':>9}{'p99 ms':>9}{'CPU s/1000':>12}{'client':>8}{'busy':>6}")
    for row in rows:
        print(
            f"{row['model']:7}{row['mode']:9}{row['in_flight']:>10}  {row['server']:12}"
            f"{row['throughput']:>10.0f}"
            f"{row['spread_percent']:>7.0f}%{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}"
            f"{row['server_cpu_s_per_1000']:>12.3f}{row['client_cpu_s_per_1000']:>8.3f}"
            f"{row['processors']:>6.2f}"
        )
    print()
    for target in findings.targets(samples):
        bound = f"at {'least' if target.at_least else 'most'} {target.bound:g}"
        verdict = "met" if target.met else "MISSED"
        print(f"{target.name:55}{target.value:7.2f}   {bound}: {verdict}")
    for name, value in findings.beside(samples):
        print(f"{name:55}{value:7.2f}   no target")
    print("\nUS dollars per million answers, 32 in flight, servers' processor time only;")
    print("prices are unconfirmed: see bench/peers/prices.toml")
    for cost in findings.costs(rows):
        where = f"{cost['model']:7}{cost['server']:12}{cost['instance']:12}"
        print(f"{where}{cost['dollars_per_million']:8.4f}   (listed {cost['listed']})")
    print(f"\n{json.dumps({'machine': found['machine'], 'versions': found['versions']}, indent=1)}")


def _plot(folder: Path, samples: list[Sample]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = findings.medians(samples)
    for model in dict.fromkeys(row["model"] for row in rows):
        for figure, unit in (("throughput", "answers a second"), ("p50_ms", "p50, milliseconds")):
            groups: dict[str, dict[str, float]] = {}
            for row in rows:
                if (row["model"], row["mode"]) == (model, "unary"):
                    group = groups.setdefault(f"{row['in_flight']} in flight", {})
                    group[row["server"]] = row[figure]
            title = f"{model}: {MODELS[model].about}"
            (folder / f"{model}-{figure}.svg").write_text(bar_plot(title, unit, groups))


def main() -> int:
    """Measure, print, and return 1 if a target is missed or something could not be measured."""
    options = _parse()
    if missing := not_installed(options.servers):
        targets = " ".join(f".bench/{name}/.installed" for name in missing)
        raise SystemExit(f"not installed yet: {', '.join(missing)}. Run `make {targets}`.")
    with tempfile.TemporaryDirectory(prefix="cm-models-") as base:
        write_models(Path(base))
        samples, failures = _run(Path(base), options)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    found = {"machine": machine, "versions": versions(options.servers), **findings.as_json(samples)}
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plots is not None:
        _plot(options.plots, samples)
    _print(found, samples)
    for failure in failures:
        print(f"not measured: {failure}")
    return 0 if not failures and all(target.met for target in findings.targets(samples)) else 1


if __name__ == "__main__":
    sys.exit(main())
