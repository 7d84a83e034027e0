"""`casemate releases`: the signed, append-only log of measurements (SPEC 15)."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate import limits
from casemate.attestation import TrustPolicy
from casemate.attestation.cmdline import FORMS, PROCESS
from casemate.client.cli.group import existing, json_option, new
from casemate.client.cli.measuring import measure_path
from casemate.client.cli.tables import printable, table
from casemate.client.files import parse_public_key, read_private_key
from casemate.client.release import policy_of_log
from casemate.errors import CasemateError, Code
from casemate.releases import ReleaseEntry, ReleaseLog, Withdrawal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.releases import Entry

_EIF: Final = "nitro-enclave"

_signers = click.option(
    "--signer",
    "signers",
    required=True,
    multiple=True,
    metavar="HEX",
    help="Public key whose entries are accepted. May be repeated.",
)
_key = click.option("--key", required=True, type=existing, help="Your Ed25519 signing key.")
_earlier = click.option(
    "--signer",
    "signers",
    multiple=True,
    metavar="HEX",
    help="Further keys that signed earlier entries. May be repeated.",
)
_log = click.argument("log", type=click.Path(dir_okay=False, path_type=Path))
_known_log = click.argument("log", type=existing)
_since = click.option(
    "--since", metavar="HEX", help="The head that you saw last: the log must go on from it."
)


@click.group(short_help="The signed, append-only log of measurements.")
def releases() -> None:
    """The log in which a project publishes what its releases measure."""


@releases.command("append", short_help="Measure a release and add it.")
@_log
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", required=True, help="What the release is called.")
@click.option("--number", type=click.IntRange(1), help="Its place in the order; else the next.")
@click.option("--form", type=click.Choice(FORMS), help="How a staged tree is run; else `process`.")
@click.option("--revision", required=True, help="What names its sources: a commit.")
@_key
@_earlier
def append(
    log: Path,
    path: Path,
    name: str,
    number: int | None,
    form: str | None,
    revision: str,
    key: Path,
    signers: tuple[str, ...],
) -> None:
    """Measure PATH, an enclave image (EIF) or a staged tree, and add it to LOG, or to a new one."""
    before = _read(log, signers, key) if log.exists() else ReleaseLog()
    _, measured, pcr8 = measure_path(path, form)
    last = before.releases[-1].number if before.releases else 0
    entry = ReleaseEntry(
        number=number or last + 1,
        name=name,
        form=(form or PROCESS) if path.is_dir() else _EIF,
        pcr0=measured.pcr0,
        pcr1=measured.pcr1,
        pcr2=measured.pcr2,
        pcr8=pcr8,
        revision=revision,
        time=_now(),
    )
    _add(log, before, entry, key)


@releases.command("withdraw", short_help="Say that a release is not to be accepted any more.")
@_known_log
@click.argument("number", type=click.IntRange(1))
@click.option("--reason", required=True, help="For people: an advisory, for example.")
@_key
@_earlier
def withdraw(log: Path, number: int, reason: str, key: Path, signers: tuple[str, ...]) -> None:
    """Withdraw the release NUMBER of LOG; its entry stays."""
    _add(log, _read(log, signers, key), Withdrawal(number, reason, _now()), key)


@releases.command("verify", short_help="Check every entry; print releases and head.")
@_known_log
@_signers
@_since
@json_option
def verify(log: Path, signers: tuple[str, ...], since: str | None, as_json: bool) -> None:
    """Check every entry of LOG and, with --since, that nothing you saw was rewritten."""
    found = _read(log, signers)
    _follows(found, since)
    rows = [_row(found, release) for release in found.releases]
    if as_json:
        click.echo(json.dumps({"head": found.head.hex(), "releases": rows}, indent=2))
        return
    click.secho(f"{len(found.entries)} entries verified", fg="green")
    shown = [(f"{row['number']}  {row['name']}", f"{row['form']}, {row['state']}") for row in rows]
    click.echo("\n".join(table([*shown, ("head", found.head.hex())], 2)))


@releases.command("accept", short_help="Write a trust policy that accepts releases of a log.")
@_known_log
@_signers
@_since
@click.option("--policy", required=True, type=existing, help="The policy to go out from.")
@click.option("--configuration", required=True, type=existing, help="The service's: gives PCR16.")
@click.option("--form", required=True, type=click.Choice((_EIF, *FORMS)), help="Which images.")
@click.option("--minimum", type=click.IntRange(1), default=1, help="The first release to accept.")
@click.option("--output", required=True, type=new, help="A new file.")
def accept(
    log: Path,
    signers: tuple[str, ...],
    since: str | None,
    policy: Path,
    configuration: Path,
    form: str,
    minimum: int,
    output: Path,
) -> None:
    """Write a policy like --policy whose releases are those of LOG from --minimum on.

    Numbers are the log's. What is withdrawn is left out. Releases that you measured yourself are
    worth more: compare.
    """
    found = _read(log, signers)
    _follows(found, since)
    chosen = [release for release in found.accepted(minimum) if release.form == form]
    result = policy_of_log(
        TrustPolicy.load(policy), chosen, configuration.read_bytes(), minimum=minimum
    )
    with output.open("x") as file:
        file.write(result.to_toml())
    click.echo(f"{len(result.releases)} releases accepted; head {found.head.hex()}")


def _read(log: Path, signers: Sequence[str], own: Path | None = None) -> ReleaseLog:
    keys = {parse_public_key(text) for text in signers}
    if own is not None:
        public = read_private_key(own).public_key()
        keys.add(public.public_bytes(Encoding.Raw, PublicFormat.Raw))
    if len(keys) > limits.RELEASE_SIGNERS_MAX:
        raise CasemateError(Code.INVALID_ARGUMENT, "too many signers")
    with log.open("rb") as file:
        return ReleaseLog.parse(file.read(limits.RELEASE_LOG_MAX + 1), frozenset(keys))


def _add(path: Path, before: ReleaseLog, entry: Entry, key: Path) -> None:
    after = before.append(entry, read_private_key(key))
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(after.to_json())
    draft.replace(path)
    click.echo(after.head.hex())


def _follows(log: ReleaseLog, since: str | None) -> None:
    if since is None:
        return
    try:
        head = bytes.fromhex(since)
    except ValueError:
        raise CasemateError(Code.INVALID_ARGUMENT, "--since: not hex digits") from None
    log.follows(head)


def _row(log: ReleaseLog, release: ReleaseEntry) -> dict[str, Any]:
    reason = log.withdrawn.get(release.number)
    state = "accepted" if reason is None else f"withdrawn: {printable(reason)}"
    registers = {name: getattr(release, name) for name in ("pcr0", "pcr1", "pcr2", "pcr8")}
    return {
        "number": release.number,
        "name": release.name,
        "form": release.form,
        **{name: value.hex() if value else None for name, value in registers.items()},
        "revision": release.revision,
        "state": state,
    }


def _now() -> int:
    return time.time_ns() // 1_000_000
