"""The dashboard: each query of each panel, asked of a Prometheus that scrapes the real host."""

from __future__ import annotations

import html
import time
from typing import TYPE_CHECKING

import pytest

from casemate_devkit.compose import dashboard
from tests.support.compose import ROOT
from tests.support.deployment import DATA

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.client import Client
    from tests.support.compose import Stack

FILE = ROOT / "docker/observe/casemate.json"
TARGETS = [
    pytest.param(target, id=f"{panel['title']}-{number}")
    for panel in dashboard.panels(FILE)
    for number, target in enumerate(dashboard.targets(panel))
]
_PATIENCE_S = 60


@pytest.fixture(scope="module")
def prometheus(stack: Stack, connect: Callable[[], Client]) -> dashboard.Prometheus:
    """Prometheus, while sealed requests and evidence were asked for between its scrapes."""
    deadline = time.monotonic() + 12
    with connect() as client:
        while time.monotonic() < deadline:
            client.infer("wdbc", {"features": DATA.features[:4]})
            client.verify()
            time.sleep(0.2)
    return dashboard.Prometheus(f"http://{stack.prometheus()}")


@pytest.mark.parametrize("target", TARGETS)
def test_every_query_of_every_panel_has_an_answer(
    prometheus: dashboard.Prometheus, target: dashboard.Target
) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := prometheus.range(target, 120)):
        assert time.monotonic() < deadline, target.expression
        time.sleep(1)
    assert all("{{" not in legend for legend in found)


def test_the_page_shows_every_panel_with_data(prometheus: dashboard.Prometheus) -> None:
    page = dashboard.page(FILE, prometheus, 120)
    for panel in dashboard.panels(FILE):
        assert f"<b>{html.escape(panel['title'])}</b>" in page
    assert "no data" not in page


def test_the_host_serves_by_its_own_metrics(prometheus: dashboard.Prometheus) -> None:
    serving = prometheus.range(dashboard.Target("casemate_serving", ""), 60)
    assert next(iter(serving.values()))[-1][1] == 1.0
