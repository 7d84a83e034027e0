"""`casemate inspect`: what a file says, which need not be true."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from casemate.client.cli.group import existing, json_option
from casemate.client.cli.tables import printable, tree
from casemate.client.inspection import inspect_file

if TYPE_CHECKING:
    from pathlib import Path


@click.command(short_help="Show what a file says, unverified.")
@click.argument("file", type=existing)
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show what FILE says: evidence, model, data, receipt, enclave image, configuration, policy.

    What FILE is, its content decides. Nothing that is shown has been verified.
    """
    facts = inspect_file(file)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    kind, note = facts.pop("kind"), facts.pop("note")
    click.secho(f"{kind}: {printable(str(file))}", bold=True)
    click.secho(note, fg="yellow")
    click.echo("\n".join(tree(facts)))
