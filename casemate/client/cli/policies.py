"""`casemate policy`: write a key policy for attested release, name the weak spots of one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import click

from casemate import limits
from casemate.attestation import TrustPolicy
from casemate.client.cli.group import existing, json_option, new, warn
from casemate.client.cli.tables import printable
from casemate.kms_policy import attested_key_policy
from casemate.kms_policy_lint import lint_key_policy

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.kms_policy import Purpose
    from casemate.kms_policy_lint import Finding

_purpose = click.option(
    "--purpose", type=click.Choice(["data", "model", "object"]), help="What the key is for."
)
_scope = click.option(
    "--scope",
    metavar="TEXT",
    help="Audience (data, object; default: the trust policy's) or PUBLISHERHEX/NAME (model).",
)
_FOUND: Final = 1


@click.group(short_help="KMS key policies: write one, find the weak spots of one.")
def policy() -> None:
    """KMS key policies for attested key release."""


@policy.command("kms", short_help="Write the least-privilege key policy.")
@click.option("--trust", type=existing, required=True, help="Trust policy: the accepted releases.")
@_purpose
@_scope
@click.option("--admin", required=True, metavar="ARN", help="Manages the key; cannot use it.")
@click.option(
    "--enclave-principal", required=True, metavar="ARN", help="Whose credentials the enclave uses."
)
@click.option(
    "--encrypt-principal",
    "encrypt_principals",
    required=True,
    multiple=True,
    metavar="ARN",
    help="May make data keys. May be repeated.",
)
@click.option("--output", type=new, help="A new file; else standard output.")
def kms(
    trust: Path,
    purpose: Purpose | None,
    scope: str | None,
    admin: str,
    enclave_principal: str,
    encrypt_principals: tuple[str, ...],
    output: Path | None,
) -> None:
    """Write the key policy under which only the accepted releases can decrypt.

    For `aws kms create-key --policy file://...`. One key serves one purpose and one scope.
    """
    accepted = TrustPolicy.load(trust)
    if purpose is None:
        raise click.UsageError("say what the key is for: --purpose data, model or object")
    meant = _meant(accepted, purpose, scope)
    written = attested_key_policy(
        account_admin=admin,
        decrypt_principal=enclave_principal,
        releases=accepted.accepted,
        purpose=purpose,
        scope=meant,
        encrypt_principals=encrypt_principals,
    )
    for finding in lint_key_policy(written, trust=accepted, purpose=purpose, scope=meant):
        warn(f"{finding.weakness}: {finding.detail}: {finding.advice.attack}")
    text = json.dumps(written, indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    with output.open("x") as file:  # a policy is replaced on purpose, never by the way
        file.write(text)


@policy.command("lint", short_help="Name every weak spot of a key policy.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--trust", type=existing, help="Trust policy: release to nobody else.")
@_purpose
@_scope
@json_option
@click.pass_context
def lint(
    context: click.Context,
    file: str,
    trust: Path | None,
    purpose: Purpose | None,
    scope: str | None,
    as_json: bool,
) -> None:
    """Read the key policy FILE (- for standard input) and name what an attacker could use.

    FILE is what `aws kms get-key-policy --query Policy --output text` prints. Exit codes: 0 nothing
    found, 1 findings, 2 wrong usage. Grants and IAM policies are not in the file: look at them too.
    """
    accepted = TrustPolicy.load(trust) if trust else None
    if purpose is None and (scope is not None or accepted is not None):
        raise click.UsageError("--trust and --scope go with --purpose")
    meant = _meant(accepted, purpose, scope) if purpose else None
    findings = lint_key_policy(_text(file), trust=accepted, purpose=purpose, scope=meant)
    if as_json:
        records = [finding.record() for finding in findings]
        click.echo(json.dumps({"clean": not findings, "findings": records}, indent=2))
    else:
        _print(findings)
    context.exit(_FOUND if findings else 0)


def _meant(accepted: TrustPolicy | None, purpose: str, scope: str | None) -> str:
    if scope is not None:
        return scope
    if purpose in {"data", "object"} and accepted is not None:
        return accepted.audience
    raise click.UsageError("name the scope: --scope")


def _text(file: str) -> str:
    """Read one byte more than a policy can have; what is no UTF-8 becomes no JSON."""
    with click.open_file(file, "rb") as stream:
        content: bytes = stream.read(limits.KEY_POLICY_MAX + 1)
    return content.decode(errors="replace")


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        title = click.style(str(finding.weakness), fg="red", bold=True)
        click.echo(f"{title}  {printable(finding.where)}: {printable(finding.detail)}")
        click.echo(f"  attack: {finding.advice.attack}")
        click.echo(f"  mend:   {finding.advice.mend}")
    count = len(findings)
    click.echo(f"{count} finding{'s' if count != 1 else ''}" if count else "no findings")
