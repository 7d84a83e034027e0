"""What the demonstration prints, and the one way in which it fails."""

from __future__ import annotations

import textwrap
import time

import click

_WIDTH = 100


class Deviation(Exception):  # noqa: N818 - it is the demonstration's finding
    """A step did not do what it promises."""


class Story:
    """Prints numbered scenes; every claim is checked before it is printed."""

    def __init__(self) -> None:
        self._scene = 0
        self._started = time.monotonic()
        self.checks = 0

    def scene(self, title: str) -> None:
        """Begin the next scene."""
        self._scene += 1
        elapsed = time.monotonic() - self._started
        heading = f"{self._scene:>2}  {title}"
        click.echo()
        click.secho(f"{heading:<{_WIDTH - 8}}{elapsed:6.1f} s", bold=True)

    def say(self, text: str) -> None:
        """Explain, wrapped to the page."""
        for line in textwrap.wrap(text, _WIDTH - 4):
            click.echo(f"    {line}")

    def show(self, label: str, value: object) -> None:
        """Print one labelled fact."""
        click.echo(f"    {label:<22} {value}")

    def command(self, line: str) -> None:
        """Print a command as a party typed it."""
        click.secho(f"    $ {line}", fg="cyan")

    def output(self, text: str) -> None:
        """Print a command's output, indented."""
        for line in text.rstrip().splitlines():
            click.echo(f"    {line}")

    def proven(self, text: str, *, when: bool, otherwise: object = "") -> None:
        """State ``text`` if ``when`` holds; otherwise the demonstration ends here."""
        if not when:
            raise Deviation(f"not true: {text}. {otherwise}".strip())
        self.checks += 1
        click.echo(f"    {click.style('✓', fg='green')} {text}")

    def refused(self, text: str, reason: str) -> None:
        """State that an attack was refused, with the reason code."""
        self.checks += 1
        click.echo(f"    {click.style('✗', fg='red')} {text}")
        click.echo(f"      {click.style('refused', fg='green')}: {reason}")
