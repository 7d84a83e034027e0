"""The dashboard's file against Grafana's own model of it, of the minor version of compose.yaml.

What the model does not know, it drops; so nothing may be missing after a round trip.
"""

from __future__ import annotations

import enum
import json
import re
import typing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.cog.runtime import panelcfg_config
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCKER = Path(__file__).resolve().parents[2] / "docker"
TEXT = (DOCKER / "observe/dashboard/casemate.json").read_text()

register_default_plugins()


def lost(before: object, after: object, path: str = "") -> Iterator[str]:
    """Yield where ``before`` says what ``after`` does not."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key, lost), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{path}[{number}]")
    elif before != after:
        yield path


def unnamed(model: object, path: str = "") -> Iterator[str]:
    """Yield where a model holds a value that its enumeration has not."""
    if isinstance(model, list):
        for number, item in enumerate(model):
            yield from unnamed(item, f"{path}[{number}]")
    if not hasattr(type(model), "from_json"):
        return
    hints = typing.get_type_hints(type(model))
    for name, value in vars(model).items():
        yield from unnamed(value, f"{path}.{name}")
        for kind in typing.get_args(hints[name]) or (hints[name],):
            known = isinstance(kind, enum.EnumType) and value is not None
            if known and value not in [member.value for member in kind]:
                yield f"{path}.{name}"


def faults(text: str) -> list[str]:
    document: dict[str, Any] = json.loads(text)
    model = Dashboard.from_json(document)
    found = [*lost(document, json.loads(json.dumps(model, cls=JSONEncoder))), *unnamed(model)]
    for panel in document["panels"]:
        if panelcfg_config(panel["type"]) is None:
            found.append(f"type {panel['type']}")
        if panel.get("fieldConfig", {}).get("defaults", {}).get("unit") not in UNITS:
            found.append(f"unit in {panel['title']}")
    return found


UNITS = {value for value in vars(units).values() if isinstance(value, str)}


def test_grafana_knows_every_word_of_the_dashboard() -> None:
    assert not faults(TEXT)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"displayMode"', '"displayMod"'),
        ('"fillOpacity"', '"opacity"'),
        ('"gridPos"', '"gridPosition"'),
        ('"legendFormat"', '"legend"'),
        ('"timeseries"', '"timeserie"'),
        ('"showPoints": "never"', '"showPoints": "no"'),
        ('"graphMode": "none"', '"graphMode": "nothing"'),
        ('"reqps"', '"requests"'),
    ],
)
def test_a_wrong_word_is_found(right: str, wrong: str) -> None:
    assert right in TEXT
    assert faults(TEXT.replace(right, wrong))


def test_the_model_is_of_the_grafana_that_the_stack_starts() -> None:
    image = re.search(r"grafana/grafana:(\d+\.\d+)\.", (DOCKER / "compose.yaml").read_text())
    assert image
    assert version("grafana-foundation-sdk").partition("!")[2].startswith(f"{image[1]}.")


def test_panels_fill_the_grid_and_none_covers_another() -> None:
    panels = json.loads(TEXT)["panels"]
    cells = [
        (place["x"] + column, place["y"] + row)
        for place in (panel["gridPos"] for panel in panels)
        for column in range(place["w"])
        for row in range(place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)
