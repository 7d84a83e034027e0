"""``python -m casemate_devkit.compose.dashboard``: the dashboard as a page, without Grafana.

Asks a Prometheus what each panel of ``docker/observe/casemate.json`` asks and draws the answers as
plain SVG, so that the panels can be looked at, and checked, where no Grafana is to be had. Grafana
draws them better; what they show is the same.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RATE_INTERVAL: Final = "30s"  # what Grafana makes of $__rate_interval at a scrape each 5 s, or more
_STEP_S: Final = 5
_CELL: Final = 50  # pixels of one of Grafana's 24 columns; a row has 30
_COLOURS: Final = ("#3274d9", "#e02f44", "#37872d", "#ff9830", "#8f3bb8", "#0a8a8a", "#7a5c3e")
_TIMEOUT_S: Final = 10.0
_STYLE: Final = """body{font:13px sans-serif;background:#f4f5f5;margin:0}
.p{position:absolute;background:#fff;border:1px solid #d8d9da;border-radius:3px;overflow:hidden}
.p b{display:block;padding:5px 8px 0}.v{font-size:30px;text-align:center;padding-top:14px}
.l{font-size:11px;padding:0 8px;position:absolute;bottom:4px}
.l i{font-style:normal;margin-right:9px}"""

# For each of Grafana's units: from which value on, times what, with which suffix.
_UNITS: Final[dict[str, tuple[tuple[float, float, str], ...]]] = {
    "s": ((1.0, 1.0, " s"), (1e-3, 1e3, " ms"), (0.0, 1e6, " µs")),
    "percentunit": ((0.0, 100.0, "%"),),
    "bytes": ((0.0, 1 / (1 << 20), " MiB"),),
    "reqps": ((0.0, 1.0, "/s"),),
    "cps": ((0.0, 1.0, "/s"),),
}

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Target:
    """One query of a panel, as Prometheus takes it."""

    expression: str
    legend: str


def panels(path: Path) -> list[dict[str, Any]]:
    """Return the panels of a dashboard file."""
    found: list[dict[str, Any]] = json.loads(path.read_text())["panels"]
    return found


def targets(panel: dict[str, Any]) -> list[Target]:
    """Return a panel's queries, with Grafana's variable filled in."""
    return [
        Target(item["expr"].replace("$__rate_interval", RATE_INTERVAL), item["legendFormat"])
        for item in panel["targets"]
    ]


class Prometheus:
    """The HTTP API of one Prometheus at ``url``; raises OSError or ValueError."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def range(self, target: Target, seconds: float) -> dict[str, Points]:
        """Return the points of the last ``seconds`` for each series, by its legend."""
        now = time.time()
        question = {"query": target.expression, "start": now - seconds, "end": now, "step": _STEP_S}
        result = {}
        for series in self._ask("query_range", question):
            points = [(float(at), float(value)) for at, value in series["values"]]
            result[_legend(target, series["metric"])] = [p for p in points if math.isfinite(p[1])]
        return {name: points for name, points in result.items() if points}

    def _ask(self, what: str, question: dict[str, Any]) -> list[Any]:
        address = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(question)}"
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - http, as given
                document = json.load(answer)
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode(errors="replace")[:300]) from None
        found: list[Any] = document["data"]["result"]
        return found


def _legend(target: Target, labels: dict[str, str]) -> str:
    text = target.legend
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def page(dashboard: Path, prometheus: Prometheus, seconds: float) -> str:
    """Return the whole dashboard as one HTML page."""
    body = "".join(_panel(panel, prometheus, seconds) for panel in panels(dashboard))
    return f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style><body>{body}"


def _panel(panel: dict[str, Any], prometheus: Prometheus, seconds: float) -> str:
    place = panel["gridPos"]
    width, height = place["w"] * _CELL - 8, place["h"] * 30 - 8
    left, top = place["x"] * _CELL + 4, place["y"] * 30 + 4
    series: dict[str, Points] = {}
    for target in targets(panel):
        series |= prometheus.range(target, seconds)
    defaults = panel["fieldConfig"]["defaults"]
    drawn = "".join(
        _stat(series, defaults)
        if panel["type"] == "stat"
        else _lines(series, defaults["unit"], width, height)
    )
    box = f"left:{left}px;top:{top}px;width:{width}px;height:{height}px"
    return f'<div class=p style="{box}"><b>{html.escape(panel["title"])}</b>{drawn}</div>'


def _stat(series: dict[str, Points], defaults: dict[str, Any]) -> Iterator[str]:
    points = next(iter(series.values()), [])
    value = points[-1][1] if points else None
    colour = "#333"
    for step in defaults.get("thresholds", {}).get("steps", []):
        if value is not None and (step["value"] is None or value >= step["value"]):
            colour = step["color"]
    named: dict[str, Any] = next((item["options"] for item in defaults.get("mappings", [])), {})
    text = "no data" if value is None else shown(value, defaults["unit"])
    if value is not None and str(int(value)) in named:
        text = named[str(int(value))]["text"]
    yield f'<div class=v style="color:{colour}">{html.escape(text)}</div>'


def _lines(series: dict[str, Points], unit: str, width: int, height: int) -> Iterator[str]:
    # What never happened takes no room in the legend, unless nothing did.
    busy = {name: points for name, points in series.items() if any(value for _, value in points)}
    series = busy or series
    every = [point for points in series.values() for point in points]
    if not every:
        yield "<div class=v>no data</div>"
        return
    first, last = min(at for at, _ in every), max(at for at, _ in every)
    most = max(value for _, value in every) or 1.0
    left, high = 62, height - 62
    yield f'<svg width="{width}" height="{height - 42}">'
    for part in range(5):
        y = 6 + high * (1 - part / 4)
        yield f'<line x1="{left}" x2="{width - 8}" y1="{y}" y2="{y}" stroke="#e4e5e6"/>'
        yield f'<text x="{left - 5}" y="{y + 4}" font-size="11" text-anchor="end">'
        yield f"{html.escape(shown(most * part / 4, unit))}</text>"
    for number, points in enumerate(series.values()):
        across = (width - left - 8) / max(last - first, 1)
        path = " ".join(
            f"{left + (at - first) * across:.1f},{6 + high * (1 - value / most):.1f}"
            for at, value in points
        )
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'
    yield "</svg><div class=l>"
    for number, name in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<i style="color:{colour}">&#9644; {html.escape(name)}</i>'
    yield "</div>"


def shown(value: float, unit: str) -> str:
    """Return a value as Grafana shows it in one of the units that the dashboard uses."""
    for smallest, factor, suffix in _UNITS.get(unit, ((0.0, 1.0, ""),)):
        if value >= smallest:
            return f"{value * factor:.3g}{suffix}"
    return "0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; 1 if Prometheus does not answer."""
    parser = argparse.ArgumentParser(prog="python -m casemate_devkit.compose.dashboard")
    parser.add_argument("--dashboard", type=Path, required=True)
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        text = page(options.dashboard, Prometheus(options.prometheus), options.seconds)
        options.output.write_text(text)
    except (OSError, ValueError) as error:
        print(f"dashboard: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
