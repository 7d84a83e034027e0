"""`casemate bench`: load on one's own deployment, through evidence and seal."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from casemate.attestation import TrustPolicy
from casemate.client.cli.calls import named_tensor
from casemate.client.cli.group import (
    EXIT_CODES,
    Seconds,
    caller_key_option,
    host_options,
    input_option,
    json_option,
    kms_key_option,
    new,
    policy_option,
    version_option,
)
from casemate.client.cli.tables import printable
from casemate.client.client import Client
from casemate.client.files import read_private_key
from casemate.client.kms import KmsDataKeys
from casemate.client.load import IN_FLIGHT_MAX, PERCENTILES, SECONDS_MAX, Load, run_load
from casemate.client.plot import latency_plot
from casemate.client.retry import RetryPolicy

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.client.access import HostAccess

_COLUMNS = ("in flight", "answers/s", *(f"p{percent:g} ms" for percent in PERCENTILES), "max ms")


@click.command(epilog=EXIT_CODES, short_help="Put load on your own deployment.")
@click.argument("target")
@click.argument("model")
@policy_option
@host_options
@input_option
@version_option
@caller_key_option
@kms_key_option
@click.option(
    "--in-flight",
    "loads",
    type=click.IntRange(1, IN_FLIGHT_MAX),
    multiple=True,
    default=(1, 8, 32),
    show_default=True,
    help="How many requests at a time. May be repeated.",
)
@click.option(
    "--seconds",
    type=Seconds(0.1, SECONDS_MAX),
    default=10.0,
    show_default=True,
    help="Length of each run, after a second of warm-up.",
)
@click.option("--plot", type=new, help="Write the latencies as an SVG image.")
@json_option
def bench(
    target: str,
    model: str,
    policy: Path,
    access: HostAccess,
    inputs: tuple[str, ...],
    version: int | None,
    caller_key: Path | None,
    kms_key: str | None,
    loads: tuple[int, ...],
    seconds: float,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Ask MODEL at TARGET (host:port) again and again; print throughput and latencies.

    Every request is sealed to verified evidence and every answer opened, as in `infer`; what is
    measured is what a caller waits for. Point it at deployments of your own only.
    """
    tensors = dict(named_tensor(item) for item in inputs)
    with Client(
        target,
        TrustPolicy.load(policy),
        caller_key=read_private_key(caller_key) if caller_key else None,
        data_keys=KmsDataKeys(kms_key) if kms_key else None,
        access=access,
        retry=RetryPolicy(attempts=0),  # a refusal is to be seen, not waited for
    ) as client:
        call = partial(client.infer, model, tensors, version=version)
        call()  # verify once, and refuse at once what would be refused a thousand times
        found = []
        for in_flight in loads:
            found.append(run_load([call] * in_flight, seconds=seconds))
            if not as_json:
                _print_row(found[-1], first=len(found) == 1)
    _report(model, target, found, plot, as_json=as_json)


def _report(
    model: str, target: str, found: list[Load], plot: Path | None, *, as_json: bool
) -> None:
    if as_json:
        runs = [load.as_json() for load in found]
        click.echo(json.dumps({"target": target, "model": model, "runs": runs}, indent=2))
    if plot is not None:
        series: dict[str, Any] = {f"{load.in_flight} in flight": load.latencies for load in found}
        plot.write_text(latency_plot(f"{model}: share of answers within a time", series))
    for load in found:
        if load.refused:
            counts = ", ".join(f"{code} {count}" for code, count in load.refused.items())
            click.echo(printable(f"refused with {load.in_flight} in flight: {counts}"), err=True)


def _print_row(load: Load, *, first: bool) -> None:
    if first:
        click.echo("  ".join(f"{name:>10}" for name in _COLUMNS))
    figures = [load.throughput, *map(load.percentile, PERCENTILES), load.latencies[-1]]
    cells = [f"{load.in_flight}", f"{figures[0]:.0f}", *(f"{figure:.2f}" for figure in figures[1:])]
    click.echo("  ".join(f"{cell:>10}" for cell in cells))
    sys.stdout.flush()
