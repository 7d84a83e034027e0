"""The dashboard as a browser draws it: headless Chromium, what it says of each panel, a picture."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_TIMEOUT_S = 120
# Times inside the page pass as fast as they can; what is asked of a server is waited for.
_PAGE_MS = 8000


@dataclass
class Panel:
    """One panel: its title, its state, the number of series of each query, all its text."""

    state: str = ""
    series: list[int] = field(default_factory=list)
    title: str = ""
    text: str = ""


@dataclass
class Page:
    """What stands in the page at the end, and what its scripts complained of."""

    state: str
    panels: list[Panel]
    console: list[str]


def render(url: str, picture: Path) -> Page:
    """Load ``url``, write a PNG to ``picture`` and return the page."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    assert program, "no Chromium: install one (Debian: apt-get install chromium)"
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                *(program, "--headless=new", "--disable-gpu", "--hide-scrollbars"),
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                *(f"--user-data-dir={profile}", "--window-size=1400,1420"),
                *("--enable-logging=stderr", f"--virtual-time-budget={_PAGE_MS}"),
                *(f"--screenshot={picture}", "--dump-dom", url),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    reader = _Reader()
    reader.feed(done.stdout)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Page(reader.state, reader.panels, console)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.state = ""
        self.panels: list[Panel] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the states."""
        self._inside = tag
        found = {name: value or "" for name, value in attrs}
        if tag == "body":
            self.state = found.get("data-state", "")
        elif tag == "section":
            series = [int(count) for count in found.get("data-series", "").split()]
            self.panels.append(Panel(found.get("data-state", ""), series))

    def handle_endtag(self, tag: str) -> None:
        """Forget where the text was."""
        self._inside = ""

    def handle_data(self, data: str) -> None:
        """Take the words of a panel."""
        if self.panels:
            self.panels[-1].text += data + " "
            if self._inside == "h2":
                self.panels[-1].title = data
