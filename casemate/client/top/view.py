"""The view of `casemate top`: one screen from what happened between two readings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from casemate.client.cli.tables import printable
from casemate.client.top.readings import STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from casemate.client.top.readings import Durations, Span

_BARS: Final = " ▁▂▃▄▅▆▇█"
_QUANTILES: Final = (0.5, 0.95, 0.99)
_OLD_S: Final = 240.0  # evidence is renewed each minute: beyond this something is wrong


def screen(target: str, span: Span, history: Sequence[float]) -> RenderableType:
    """Return the whole screen; ``history``: answers a second, the latest last."""
    return Group(
        _headline(target, span),
        Panel(_traffic(span, history), title="calls a second", title_align="left"),
        Panel(_steps(span), title=f"steps, last {span.seconds:.0f} s", title_align="left"),
        Panel(_place(span), title="host and enclave", title_align="left"),
    )


def _headline(target: str, span: Span) -> Text:
    gauges = span.now.gauges
    serving = gauges.get("casemate_serving", 0) == 1
    line = Text.assemble(
        ("casemate top ", "bold"), printable(target), "   ", _state(serving=serving)
    )
    age = gauges.get("casemate_evidence_age_seconds")
    if age is not None:
        line.append(f"   evidence {age:.0f} s old", "yellow" if age > _OLD_S else "")
    return line


def _state(*, serving: bool) -> tuple[str, str]:
    return ("SERVING", "bold green") if serving else ("NOT SERVING", "bold red")


def _traffic(span: Span, history: Sequence[float]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row("answered", _rate(span.answered), Text(sparkline(history), "cyan"))
    table.add_row("refused", _rate(span.refused), "")
    codes = sorted(
        ((rate, method, code) for (method, code), rate in span.calls.items() if rate > 0),
        reverse=True,
    )
    for rate, method, code in codes[:8]:
        style = "" if code == "OK" else "yellow"
        table.add_row("", _rate(rate), Text(f"{printable(method)} {printable(code)}", style))
    return table


def _steps(span: Span) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("step")
    for name in ("a second", "mean", "p50", "p95", "p99"):
        table.add_column(name, justify="right")
    known = [step for step in STEPS if step in span.steps]
    for step in known:
        durations = span.steps[step]
        quantiles = (_milliseconds(durations.quantile(share)) for share in _QUANTILES)
        table.add_row(
            step, _rate(durations.count / span.seconds), _milliseconds(_mean(durations)), *quantiles
        )
    return table


def _place(span: Span) -> Table:
    gauges, events = span.now.gauges, span.now.events
    table = Table.grid(padding=(0, 2))
    waiting, busy = gauges.get("casemate_relay_waiting", 0), gauges.get("casemate_relay_busy", 0)
    under_way = gauges.get("casemate_calls_under_way", 0)
    streams = gauges.get("casemate_streams_under_way", 0)
    table.add_row(
        "queue",
        f"{waiting:.0f} waiting, {busy:.0f} with the enclave, {under_way:.0f} calls under way, "
        f"{streams:.0f} streams",
    )
    memory = gauges.get("process_resident_memory_bytes", 0) / (1 << 20)
    table.add_row(
        "host",
        f"{memory:.0f} MiB, {gauges.get('casemate_threads', 0):.0f} threads, "
        f"{gauges.get('process_open_fds', 0):.0f} descriptors",
    )
    if events:
        refused, total = events.get("requests_refused", 0), events.get("requests", 0)
        table.add_row("enclave", f"{total:.0f} requests, {refused:.0f} refused, since its start")
    models = ", ".join(f"{printable(n)}:{printable(v)}" for n, v in span.now.models)
    table.add_row("models", Text(models or "none"))
    return table


def sparkline(history: Sequence[float]) -> str:
    """Return one bar for each value, the highest of all full."""
    most = max(history, default=0.0)
    if most <= 0:
        return ""
    top = len(_BARS) - 1
    return "".join(_BARS[min(top, round(value / most * top))] for value in history)


def _mean(durations: Durations) -> float | None:
    return durations.total_s / durations.count if durations.count else None


def _rate(value: float) -> str:
    return f"{value:,.1f}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    milliseconds = seconds * 1000
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.2f} ms"  # noqa: PLR2004 - three digits
