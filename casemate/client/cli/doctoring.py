"""`casemate doctor`: what this machine can do."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from casemate.client.cli.group import json_option
from casemate.client.cli.tables import printable
from casemate.client.doctor import examine

if TYPE_CHECKING:
    from casemate.client.doctor import Check

_TITLES: Final = {
    "process": "An enclave as an isolated process",
    "advice": "Advice",
    "nitro": "AWS Nitro Enclaves",
}


@click.command(short_help="Say what this machine can and cannot do.")
@json_option
def doctor(as_json: bool) -> None:
    """Try what isolating an enclave takes, and say what is missing and how to mend it.

    Exit code 0: an enclave can run here as an isolated process; 1: it cannot.
    """
    checks = examine()
    able = all(check.ok for check in checks if check.need == "process")
    if as_json:
        click.echo(json.dumps({"able": able, "checks": [asdict(check) for check in checks]}))
    else:
        _show(checks, able=able)
    sys.exit(0 if able else 1)


def _show(checks: tuple[Check, ...], *, able: bool) -> None:
    good, bad = ("✓", "✗") if _writes("✓✗") else ("+", "x")
    width = max(len(check.name) for check in checks)
    for need, title in _TITLES.items():
        click.secho(title, bold=True)
        for check in checks:
            if check.need != need:
                continue
            mark = click.style(good, fg="green") if check.ok else click.style(bad, fg="red")
            click.echo(f"  {mark} {check.name:<{width}}  {printable(check.found)}")
            if check.mend:
                click.echo(f"    {'':<{width}}  -> {printable(check.mend)}")
    if able:
        click.secho("\nAn enclave can run here as an isolated process.", fg="green")
    else:
        click.secho(
            "\nAn enclave cannot be isolated here. For a trial: --unsafe-no-namespaces.", fg="red"
        )


def _writes(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
