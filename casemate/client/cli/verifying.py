"""`casemate verify`: evidence of a host, or from a file, step by step (SPEC 3.8, 3.9)."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from casemate.attestation import VerifiedEvidence
from casemate.attestation.details import moment
from casemate.attestation.tpm_policy import evidence_policy, load_any_policy
from casemate.client.cli.group import (
    EXIT_CODES,
    host_options,
    json_option,
    new,
    policy_option,
    warn,
)
from casemate.client.cli.report import Report
from casemate.client.cli.tables import printable
from casemate.client.client import Client
from casemate.client.stored import Stored
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from casemate.attestation import TrustPolicy
    from casemate.attestation.measured import MeasuredDocument
    from casemate.attestation.tpm_policy import TpmPolicy
    from casemate.client.access import HostAccess

_OWN_TIME: Final = "doc"


@click.command(epilog=EXIT_CODES, short_help="Verify an enclave, or stored evidence.")
@click.argument("target", metavar="TARGET|FILE")
@policy_option
@host_options
@click.option("--nonce", metavar="HEX", help="With a FILE: the nonce that you issued for it.")
@click.option(
    "--at",
    metavar="RFC3339|doc",
    help="With a FILE: judge as of this time, or of the document's own. For archives only.",
)
@click.option("--save", type=new, help="Keep the verified evidence in this file.")
@json_option
def verify(
    target: str,
    policy: Path,
    access: HostAccess,
    nonce: str | None,
    at: str | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Verify the enclave behind TARGET (host:port), or what a FILE holds.

    A FILE is evidence that --save wrote, or an attestation document alone (CBOR). A document says
    which code runs and nothing of its configuration, keys and models: steps 13 to 18 are skipped.
    Documents of a NitroTPM need a policy for platform "nitrotpm".
    """
    report = Report(as_json=as_json)
    stored = Path(target).exists()
    if stored and save is not None:
        raise click.UsageError("--save keeps what a host sends; this is a file already")
    if not stored:
        _check_target(target, nonce, at)
    issued, as_of = _parse_nonce(nonce), _parse_time(at)
    trust = load_any_policy(policy)
    try:
        if stored:
            verified = _from_file(Path(target), trust, issued, as_of, report)
        else:
            verified = _live(target, trust, access, report)
    except CasemateError as error:
        report.refused(error)
        raise
    report.verified(verified, live=not stored, archive=as_of is not None)
    if save is not None and isinstance(verified, VerifiedEvidence):
        save.write_bytes(verified.bundle.serialize())


def _check_target(target: str, nonce: str | None, at: str | None) -> None:
    if ":" not in target:
        raise click.UsageError(printable(f"{target} is neither a file nor host:port"))
    if nonce is not None or at is not None:
        raise click.UsageError("--nonce and --at are for files; a live nonce is made here")


def _live(
    target: str, policy: TrustPolicy | TpmPolicy, access: HostAccess, report: Report
) -> VerifiedEvidence:
    with Client(target, evidence_policy(policy), access=access) as client:
        return client.verify(observe=report.step)


def _from_file(
    path: Path,
    policy: TrustPolicy | TpmPolicy,
    nonce: bytes | None,
    at: int | str | None,
    report: Report,
) -> VerifiedEvidence | MeasuredDocument:
    stored = Stored.read(path)
    now = time.time_ns() // 1_000_000
    if at is not None:
        now = at if isinstance(at, int) else stored.timestamp
        warn(f"judged as of {moment(now)}: an archive verdict, not a live one; seal nothing by it")
    elif nonce is None:
        warn("a file without a nonce of yours: its age says how fresh it is, and nothing else")
    return stored.judge(policy, nonce=nonce, now=now, observe=report.step)


def _parse_nonce(text: str | None) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError:
        raise click.BadParameter("not hex digits", param_hint="--nonce") from None


def _parse_time(text: str | None) -> int | str | None:
    """Return milliseconds, or ``doc`` for the document's own time, or None for the present."""
    return text if text is None or text == _OWN_TIME else parse_time(text)


def parse_time(text: str) -> int:
    """Return an RFC 3339 time in milliseconds; raises click.BadParameter."""
    try:
        parsed = datetime.fromisoformat(text)
        at = int(parsed.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise click.BadParameter("not a time in RFC 3339", param_hint="--at") from None
    if parsed.tzinfo is None or at < 0:
        raise click.BadParameter("needs a time zone, and a time after 1970", param_hint="--at")
    return at
