"""Small plots as SVG text, without a plotting library: lines over a logarithmic axis, and bars."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Told apart by people who do not tell red from green (Okabe and Ito, 2008).
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 160, 46, 52
_PLOT_W, _PLOT_H = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_POINTS_MAX: Final = 400  # more make a file large and change no pixel


def latency_plot(title: str, series: Mapping[str, Sequence[float]]) -> str:
    """Plot the share of calls (percent) that took at most a time; ``series``: ascending, in ms."""
    present = {name: values for name, values in series.items() if values}
    low = min(values[0] for values in present.values())
    high = max(values[-1] for values in present.values())
    start, stop = math.floor(math.log10(low)), max(math.ceil(math.log10(high)), 1)
    span = max(stop - start, 1)

    def x(value: float) -> float:
        return _LEFT + _PLOT_W * (math.log10(value) - start) / span

    def y(percent: float) -> float:
        return _TOP + _PLOT_H * (1 - percent / 100)

    parts = [_grid_y(y(percent), f"{percent} %") for percent in (0, 25, 50, 75, 90, 100)]
    parts += [_grid_x(x(10.0**power), f"{10.0**power:g}") for power in range(start, stop + 1)]
    for index, (name, values) in enumerate(present.items()):
        step = max(1, len(values) // _POINTS_MAX)
        points = [
            f"{x(values[at]):.1f},{y(100 * (at + 1) / len(values)):.1f}"
            for at in (*range(0, len(values), step), len(values) - 1)
        ]
        colour = _COLOURS[index % len(_COLOURS)]
        line = " ".join(points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        parts.append(_legend(index, name, colour))
    return _document(title, "milliseconds, logarithmic", parts)


def bar_plot(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Plot a group of bars for each key; within a group one for each name, always in one colour."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    top = _round(max((value for group in groups.values() for value in group.values()), default=1))
    parts = [
        _grid_y(_TOP + _PLOT_H * (1 - share / 4), f"{top * share / 4:.4g}") for share in range(5)
    ]
    room = _PLOT_W / max(len(groups), 1)
    width = room * 0.8 / max(len(names), 1)
    for place, (label, group) in enumerate(groups.items()):
        left = _LEFT + room * (place + 0.1)
        parts.append(_text(left + room * 0.4, _HEIGHT - _BOTTOM + 16, label, "middle"))
        for index, name in enumerate(names):
            height = _PLOT_H * group.get(name, 0.0) / top
            bar = f'x="{left + width * index:.1f}" y="{_TOP + _PLOT_H - height:.1f}"'
            size = f'width="{width * 0.95:.1f}" height="{height:.1f}"'
            parts.append(f'<rect {bar} {size} fill="{_COLOURS[index % len(_COLOURS)]}"/>')
    parts += [_legend(i, name, _COLOURS[i % len(_COLOURS)]) for i, name in enumerate(names)]
    return _document(f"{title}; {unit}", "", parts)


def _round(value: float) -> float:
    """Return the next number whose quarters are easy to read."""
    if value <= 0:
        return 1.0
    scale: float = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 4, 6, 8, 10) if step * scale >= value)


def _grid_y(y: float, label: str) -> str:
    line = f'<line x1="{_LEFT}" x2="{_LEFT + _PLOT_W}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
    return line + _text(_LEFT - 6, y + 4, label, "end")


def _grid_x(x: float, label: str) -> str:
    line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_TOP + _PLOT_H}" stroke="#ddd"/>'
    return line + _text(x, _TOP + _PLOT_H + 16, label, "middle")


def _legend(index: int, name: str, colour: str) -> str:
    x, y = _WIDTH - _RIGHT + 12, _TOP + 18 * index
    return f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>' + _text(
        x + 18, y + 11, name, "start"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _document(title: str, axis: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    )
    names = _text(_LEFT, 24, title, "start") + _text(
        _LEFT + _PLOT_W / 2, _HEIGHT - 12, axis, "middle"
    )
    return "\n".join([head, names, *parts, "</svg>", ""])
