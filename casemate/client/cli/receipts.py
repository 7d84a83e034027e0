"""`casemate receipt`: judge a stored receipt offline, or show less of it (SPEC 14)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from casemate import limits
from casemate.attestation import TrustPolicy
from casemate.attestation.details import moment
from casemate.client.cli.group import EXIT_CODES, existing, json_option, new, policy_option, warn
from casemate.client.cli.report import Report
from casemate.client.cli.verifying import parse_time
from casemate.client.files import write_private
from casemate.errors import CasemateError, Code
from casemate.receipts import StoredReceipt, verify_receipt

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.receipts import Shown, VerifiedReceipt

_PRESENT: Final = "now"


@click.group(short_help="Judge a receipt offline, or show less of it.")
def receipt() -> None:
    """Receipts that `casemate infer --receipt` keeps: who answered what, signed by the enclave."""


@receipt.command("verify", epilog=EXIT_CODES, short_help="Judge a receipt, offline.")
@click.argument("file", type=existing)
@policy_option
@click.option(
    "--at",
    metavar="RFC3339|now",
    help="Judge the evidence as of this time, at which you know that the receipt existed. "
    "By default as of the receipt's own.",
)
@json_option
def verify(file: Path, policy: Path, at: str | None, as_json: bool) -> None:
    """Judge the receipt in FILE by your policy, with the evidence that is stored in it.

    Prints the nine steps of a receipt and, within the second, those of evidence. Nothing is asked
    of anybody: neither the service nor any key is needed.
    """
    trust = TrustPolicy.load(policy)
    as_of = None if at in {None, _PRESENT} else parse_time(at or "")
    stored = _read(file)
    report = Report(as_json=as_json)
    if at == _PRESENT:
        as_of = time.time_ns() // 1_000_000
    try:
        if as_of is None:
            as_of = stored.unverified.statement.time
            warn(
                f"judged as of {moment(as_of)}, the receipt's own time: this believes that no key "
                "of the enclave's or of its certificates has leaked since"
            )
        verified = verify_receipt(
            stored, trust, at=as_of, observe=report.step, observe_evidence=report.inner
        )
    except CasemateError as error:
        report.refused(error)
        raise
    report.judged(_summary(verified), f"receipt verified as of {moment(as_of)}")


@receipt.command("strip", short_help="Write a copy that shows less.")
@click.argument("file", type=existing)
@click.argument("output", type=new)
@click.option("--question", is_flag=True, help="Leave the question out.")
@click.option("--answer", is_flag=True, help="Leave the answer out.")
def strip(file: Path, output: Path, *, question: bool, answer: bool) -> None:
    """Write the receipt in FILE to OUTPUT without its question, its answer, or either.

    The copy verifies as before; what is left out cannot be guessed from it.
    """
    if not (question or answer):
        raise click.UsageError("nothing to leave out: --question, --answer or both")
    shown = _read(file).showing(question=not question, answer=not answer)
    write_private(output, shown.encode())


def _read(path: Path) -> StoredReceipt:
    with path.open("rb") as file:
        data = file.read(limits.RECEIPT_FILE_MAX + 1)
    if len(data) > limits.RECEIPT_FILE_MAX:
        raise CasemateError(Code.TOO_LARGE, f"{path}: above {limits.RECEIPT_FILE_MAX} bytes")
    return StoredReceipt.parse(data)


def _summary(verified: VerifiedReceipt) -> dict[str, Any]:
    said, evidence = verified.statement, verified.evidence
    return {
        "answered": moment(said.time),
        "model": f"{said.model}:{said.version}",
        "digest": said.digest.hex(),
        "question": _shown(verified.question),
        "answer": _shown(verified.answer),
        "release": evidence.release,
        "audience": evidence.configuration.audience,
        "instance_id": evidence.instance.instance_id.hex(),
        "judged_at": moment(verified.judged_at),
    }


def _shown(part: Shown | None) -> str:
    return "not shown" if part is None else "the one shown"
