"""The command line in this process: what it prints, and that it never shows a traceback."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner, Result

from casemate.client.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: str | Path, code: int = 0, stdin: bytes | None = None) -> Result:
    """Run ``casemate``; any end but ``code`` is a failure."""
    result = run_any(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    return result


def run_any(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    """Run it to whatever end; any exception but an exit is a failure."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def run_json(*arguments: str | Path, code: int = 0, stdin: bytes | None = None) -> Any:  # noqa: ANN401 - JSON
    """Run it and parse its standard output."""
    return json.loads(run(*arguments, code=code, stdin=stdin).stdout)


def refusal(*arguments: str | Path, code: int = 1) -> str:
    """Run what is refused; return the last line of standard error, which names the reason."""
    return run(*arguments, code=code).stderr.splitlines()[-1]
