"""How a verification is shown: a line for each step, then the verdict; or all of it as JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from casemate.attestation import VerifiedEvidence
from casemate.attestation.details import moment
from casemate.client.cli.tables import printable, table

if TYPE_CHECKING:
    from casemate.attestation import LogEntry, Step
    from casemate.attestation.measured import MeasuredDocument
    from casemate.errors import CasemateError

_MARKS: Final = {"passed": "✓", "failed": "✗", "skipped": "-"}
_ASCII_MARKS: Final = {"passed": "+", "failed": "x", "skipped": "-"}
_COLOURS: Final = {"passed": "green", "failed": "red", "skipped": "yellow"}


class Report:
    """Collects the steps of one verification and prints them."""

    def __init__(self, *, as_json: bool) -> None:
        """Print text as it comes, or one JSON object at the end."""
        self._as_json = as_json
        self._steps: list[Step] = []
        self._inner: list[Step] = []
        self._marks = _MARKS if _shows(_MARKS) else _ASCII_MARKS

    def step(self, step: Step) -> None:
        """Take the report of one step."""
        self._steps.append(step)
        self._show(step, "  ")

    def inner(self, step: Step) -> None:
        """Take the report of a step within the next step."""
        self._inner.append(step)
        self._show(step, "       ")

    def _show(self, step: Step, indent: str) -> None:
        if not self._as_json:
            mark = click.style(self._marks[step.outcome], fg=_COLOURS[step.outcome])
            click.echo(f"{indent}{mark} {step.number:>2} {step.name:<14} {printable(step.detail)}")

    def refused(self, error: CasemateError) -> None:
        """End with a refusal; the caller goes on to print it on standard error."""
        if self._as_json:
            self._print({"verified": False, "code": str(error.code), "detail": error.detail})

    def verified(
        self, verified: VerifiedEvidence | MeasuredDocument, *, live: bool, archive: bool
    ) -> None:
        """End with what was verified.

        ``live``: just now, from the host itself; ``archive``: at another time than the present.
        """
        if isinstance(verified, VerifiedEvidence):
            summary = _of_evidence(verified)
        else:
            summary = _of_document(verified)
        if self._as_json:
            judged = {"live": live, "judged_at": moment(verified.verified_at)}
            self._print({"verified": True, **judged, **summary})
            return
        how = "" if live else ", from a file"
        if archive:
            how = f" as of {moment(verified.verified_at)}: an archive, not a live verdict"
        click.secho(f"  {summary['scope']} verified{how}", fg="yellow" if archive else "green")
        click.echo("\n".join(table(_rows(summary), 2)))

    def judged(self, summary: dict[str, Any], headline: str) -> None:
        """End with what else was verified; ``summary`` has JSON values."""
        if self._as_json:
            self._print({"verified": True, **summary})
            return
        click.secho(f"  {headline}", fg="green")
        rows = [(name.replace("_", " "), str(value)) for name, value in summary.items()]
        click.echo("\n".join(table(rows, 2)))

    def _print(self, verdict: dict[str, Any]) -> None:
        inner = {"evidence_steps": _as_json(self._inner)} if self._inner else {}
        click.echo(json.dumps({**verdict, **inner, "steps": _as_json(self._steps)}, indent=2))


def _as_json(steps: list[Step]) -> list[dict[str, Any]]:
    return [
        {
            "number": step.number,
            "step": step.name,
            "code": str(step.code),
            "outcome": step.outcome,
            "detail": step.detail,
        }
        for step in steps
    ]


def _shows(marks: dict[str, str]) -> bool:
    try:
        "".join(marks.values()).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The summary for people; the log in its order: what was unloaded had been loaded once."""
    shown = [name for name in summary if name not in {"scope", "timestamp", "models"}]
    rows = [(name.replace("_", " "), str(summary[name])) for name in shown]
    rows.append(("attested", moment(summary["timestamp"])))
    for number, item in enumerate(summary.get("models", [])):
        entry = f"{item['op']} {item['name']}:{item['version']}, digest {item['digest'][:16]}..."
        rows.append(("" if number else "models", entry))
    return rows


def _of_evidence(evidence: VerifiedEvidence) -> dict[str, Any]:
    return {
        "scope": "evidence",
        "release": evidence.release,
        "audience": evidence.configuration.audience,
        "form": evidence.instance.form,
        "instance_id": evidence.instance.instance_id.hex(),
        "module_id": evidence.document.module_id,
        "timestamp": evidence.document.timestamp,
        "models": [_of_entry(entry) for entry in evidence.log],
    }


def _of_entry(entry: LogEntry) -> dict[str, Any]:
    return {
        "op": entry.op,
        "name": entry.name,
        "version": entry.version,
        "digest": entry.digest.hex(),
        "publisher": entry.publisher.hex(),
    }


def _of_document(measured: MeasuredDocument) -> dict[str, Any]:
    return {
        "scope": "document",
        "release": measured.release,
        "module_id": measured.document.module_id,
        "timestamp": measured.document.timestamp,
    }
