"""`casemate top`: a running host, live (needs the extra `casemate[top]`)."""

from __future__ import annotations

import collections
import json
import time
from typing import TYPE_CHECKING, Any

import click

from casemate.client.cli.group import Seconds
from casemate.client.top import readings
from casemate.errors import CasemateError, Code, RequestError

if TYPE_CHECKING:
    from casemate.client.top.readings import Reading, Span

_HISTORY = 60


@click.command(short_help="Watch a running host.")
@click.argument("target")
@click.option(
    "--every",
    type=Seconds(0.2, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two readings.",
)
@click.option("--once", is_flag=True, help="One screen, then end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a reading.")
def top(target: str, every: float, *, once: bool, as_json: bool) -> None:
    """Watch the host whose metrics page is at TARGET (host:port or a URL) until interrupted.

    Throughput, the latency of each step, the queue, models, the age of the evidence. It is the
    operator's word about itself; what you may trust is for `casemate verify` to say.
    """
    before = readings.read(target)
    try:
        if as_json:
            _print_json(target, before, every, once=once)
        else:
            _show(target, before, every, once=once)
    except KeyboardInterrupt:
        return


def _print_json(target: str, before: Reading, every: float, *, once: bool) -> None:
    while True:
        time.sleep(every)
        now = readings.read(target)
        click.echo(json.dumps(as_dict(readings.between(before, now))))
        if once:
            return
        before = now


def _show(target: str, before: Reading, every: float, *, once: bool) -> None:
    # Imported here: the extra is not everybody's.
    try:
        from rich.console import Console  # noqa: PLC0415 - extra
        from rich.live import Live  # noqa: PLC0415 - extra

        from casemate.client.top.view import screen  # noqa: PLC0415 - imports the extra
    except ImportError:
        detail = "`casemate top` needs the extra: pip install 'casemate[top]'"
        raise RequestError(Code.INVALID_ARGUMENT, detail) from None
    history: collections.deque[float] = collections.deque(maxlen=_HISTORY)
    console = Console(highlight=False)
    if once:
        time.sleep(every)
        span = readings.between(before, readings.read(target))
        console.print(screen(target, span, [span.answered]))
        return
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            try:
                now = readings.read(target)
            except CasemateError as error:
                live.update(f"{error.code}: {target} does not answer; trying again", refresh=True)
                continue
            span = readings.between(before, now)
            history.append(span.answered)
            live.update(screen(target, span, history), refresh=True)
            before = now


def as_dict(span: Span) -> dict[str, Any]:
    """Return what the screen shows, for machines: rates a second, durations in milliseconds."""
    gauges = span.now.gauges
    return {
        "serving": gauges.get("casemate_serving") == 1,
        "evidence_age_s": gauges.get("casemate_evidence_age_seconds"),
        "answered_per_s": round(span.answered, 3),
        "refused_per_s": round(span.refused, 3),
        "waiting": gauges.get("casemate_relay_waiting"),
        "models": [f"{name}:{version}" for name, version in span.now.models],
        "steps": {
            step: {
                "per_s": round(durations.count / span.seconds, 3),
                **{f"p{share}": _ms(durations.quantile(share / 100)) for share in (50, 95, 99)},
            }
            for step, durations in span.steps.items()
        },
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
