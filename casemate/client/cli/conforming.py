"""`casemate conformance`: test vectors through the verifier (SPEC 13.2)."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from casemate.attestation.conformance import judge
from casemate.errors import CasemateError, Code

_INPUT_MAX: Final = 64 << 20  # a file of vectors takes about one megabyte


@click.group()
def conformance() -> None:
    """Run test vectors, also those of other implementations."""


@conformance.command()
def verify() -> None:
    """Read a case, or an array of cases, as JSON; print the verdict of each as JSON.

    A case has `evidence` or `document` (lower-case hex; or `evidence_base64`, `document_base64`),
    `policy` (TOML) or, for a document, `roots` (SHA-256 of DER, hex), `time` (milliseconds) and
    `nonce` (hex or null). The exit code says that cases were judged, not how.
    """
    cases = _read()
    verdicts = [judge(case) for case in cases] if isinstance(cases, list) else judge(cases)
    click.echo(json.dumps(verdicts, indent=2))


def _read() -> Any:  # noqa: ANN401 - JSON
    data = sys.stdin.buffer.read(_INPUT_MAX + 1)
    if len(data) > _INPUT_MAX:
        raise CasemateError(Code.TOO_LARGE, "standard input is above 64 MiB")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        detail = f"standard input is not JSON: {str(error)[:200]}"
        raise CasemateError(Code.INVALID_ARGUMENT, detail) from None
