"""The dashboard that `--profile observe` serves, drawn by a browser: the real host's numbers.

Each panel's state is what its page says of it; the last tests show that it does not say "data" of
what has none.
"""

from __future__ import annotations

import json
import os
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import Page, render
from tests.support.compose import ROOT
from tests.support.deployment import DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.client import Client
    from tests.support.compose import Stack

FOLDER = ROOT / "docker/observe/dashboard"
PANELS: list[dict[str, Any]] = json.loads((FOLDER / "casemate.json").read_text())["panels"]
_LOAD_S = 30
_PATIENCE_S = 180


@pytest.fixture(scope="module")
def page(
    stack: Stack, connect: Callable[[], Client], tmp_path_factory: pytest.TempPathFactory
) -> Page:
    """The page, after sealed requests and evidence were asked for between several scrapes."""
    deadline = time.monotonic() + _LOAD_S
    with connect() as client:
        while time.monotonic() < deadline:
            client.infer("wdbc", {"features": DATA.features[:4]})
            client.verify()
            time.sleep(0.1)
    folder = Path(os.environ.get("CASEMATE_PICTURES") or tmp_path_factory.mktemp("pictures"))
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        found = render(f"http://{stack.prometheus()}/user/?range=60", folder / "dashboard.png")
        if time.monotonic() > deadline or all(panel.state == "data" for panel in found.panels):
            return found


def test_the_page_has_every_panel_of_the_file_and_no_complaint(page: Page) -> None:
    assert page.state == "ready"
    assert [panel.title for panel in page.panels] == [panel["title"] for panel in PANELS]
    assert not page.console


@pytest.mark.parametrize("number", range(len(PANELS)), ids=[panel["title"] for panel in PANELS])
def test_every_query_of_every_panel_has_data(page: Page, number: int) -> None:
    panel = page.panels[number]
    assert panel.state == "data", panel.text
    assert len(panel.series) == len(PANELS[number]["targets"])
    assert all(panel.series), panel.series
    assert "{{" not in panel.text


def test_the_page_says_that_the_host_serves(page: Page) -> None:
    named = {panel.title: panel.text.split() for panel in page.panels}
    assert named["Serving"][-1] == "yes"
    assert named["Models that answer"][-1] == "1"


class _Other(SimpleHTTPRequestHandler):
    """The same page beside an API that answers ``answer`` to everything."""

    answer: tuple[int, dict[str, Any]]

    def do_GET(self) -> None:
        if not self.path.startswith("/api/"):
            super().do_GET()
            return
        status, document = self.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - as inherited
        """Be quiet."""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Callable[[int, dict[str, Any]], Page]]:
    (tmp_path / "user").symlink_to(FOLDER)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Other, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def drawn(status: int, document: dict[str, Any]) -> Page:
        _Other.answer = (status, document)
        return render(f"http://127.0.0.1:{server.server_port}/user/", tmp_path / "page.png")

    yield drawn
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_panel_without_data_says_so(elsewhere: Callable[[int, dict[str, Any]], Page]) -> None:
    page = elsewhere(200, {"status": "success", "data": {"result": []}})
    assert {panel.state for panel in page.panels} == {"empty"}
    assert all("no data" in panel.text for panel in page.panels)


def test_a_refused_query_shows_its_reason(elsewhere: Callable[[int, dict[str, Any]], Page]) -> None:
    page = elsewhere(400, {"status": "error", "error": "parse error: unexpected character"})
    assert page.state == "error"
    assert {panel.state for panel in page.panels} == {"error"}
    assert all("parse error: unexpected character" in panel.text for panel in page.panels)
