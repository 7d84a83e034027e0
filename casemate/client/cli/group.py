"""What all commands share: refusals, exit codes, options."""

from __future__ import annotations

import errno
import functools
import io
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from casemate.client.access import HostAccess
from casemate.client.cli.tables import printable
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_CODES: Final = """Exit codes: 0 done; 1 refused, with a reason code on standard error; 2 wrong usage; 3 nobody answered, so nothing was judged (HOST_UNREACHABLE, UNAVAILABLE, DEADLINE_EXCEEDED)."""  # noqa: E501 - click wraps it

_SILENT: Final = frozenset({Code.HOST_UNREACHABLE, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})


class Seconds(click.FloatRange):
    """A time within bounds; unlike click's own it takes no NaN, which is within any."""

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return what ``value``, a text or a default, says; wrong usage if it is out of bounds."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail("not a number", param, ctx)
        return seconds


existing = click.Path(exists=True, dir_okay=False, path_type=Path)
new = click.Path(dir_okay=False, path_type=Path)
policy_option = click.option(
    "--policy", required=True, type=existing, help="Trust policy (TOML): what you accept."
)
input_option = click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="NAME=FILE",
    help="A tensor: .npy, .csv (float32) or .json. May be repeated.",
)
version_option = click.option(
    "--version", type=click.IntRange(1), help="Model version; the latest by default."
)
caller_key_option = click.option(
    "--caller-key", type=existing, help="Your Ed25519 key, for models that list callers."
)
kms_key_option = click.option("--kms-key", help="ARN of your own KMS key: data keys come from it.")
timeout_option = click.option(
    "--timeout", type=Seconds(0, 3600), default=30.0, show_default=True, help="Seconds."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def host_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how to reach the host, and pass them on as ``access``."""

    @click.option("--tls-roots", type=existing, help="PEM roots; turns TLS to the host on.")
    @click.option("--tls-certificate", type=existing, help="Your certificate for the host (PEM).")
    @click.option("--tls-key", type=existing, help="The certificate's key (PEM).")
    @click.option("--token-file", type=existing, help="Your bearer token for the host.")
    @functools.wraps(command)
    def run(
        *,
        tls_roots: Path | None,
        tls_certificate: Path | None,
        tls_key: Path | None,
        token_file: Path | None,
        **named: object,
    ) -> None:
        access = HostAccess.read(
            tls_roots=tls_roots,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            token=token_file,
        )
        command(access=access, **named)

    return run


class _Refusal(click.ClickException):
    """One line on standard error."""

    def __init__(self, error: CasemateError) -> None:
        super().__init__(printable(f"{error.code}: {error.detail}"))


class _NoAnswer(_Refusal):
    exit_code = 3


class _Commands(click.Group):
    """Turns every refusal into one line; a traceback is a defect."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run the command."""
        try:
            return super().invoke(ctx)
        except CasemateError as error:
            raise (_NoAnswer if error.code in _SILENT else _Refusal)(error) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read the output has gone: click ends quietly
                raise
            name = f"{error.filename}: " if isinstance(error.filename, str | Path) else ""
            detail = f"{name}{error.strerror or type(error).__name__}"
            raise _Refusal(CasemateError(Code.INVALID_ARGUMENT, detail)) from None


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
@click.version_option(package_name="casemate")
def main() -> None:
    """Confidential inference: verify the enclave, then seal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without UTF-8 is no reason to stop
            stream.reconfigure(errors="backslashreplace")


def warn(text: str) -> None:
    """Print a warning on standard error."""
    click.secho(f"warning: {printable(text)}", fg="yellow", err=True)
