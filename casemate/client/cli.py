"""The command line: `casemate keygen`, `verify`, `infer`, `seal-model`.

Exit codes: 0 done, 1 refused (the reason code is on standard error), 2 wrong usage.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.attestation import EvidenceBundle, TrustPolicy, parse_document, verify_evidence
from casemate.client.client import Client
from casemate.client.files import (
    answer_as_json,
    parse_public_key,
    read_private_key,
    read_tensor,
    write_private_key,
)
from casemate.client.kms import KmsDataKeys
from casemate.client.seal import seal_onnx
from casemate.errors import CasemateError, Code
from casemate.sealed_model import model_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.attestation import Step, VerifiedEvidence

_MARKS = {"passed": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("-", "yellow")}
_existing = click.Path(exists=True, dir_okay=False, path_type=Path)
_new = click.Path(dir_okay=False, path_type=Path)
_policy = click.option(
    "--policy", required=True, type=_existing, help="Trust policy (TOML): what you accept."
)
_tls = click.option("--tls-roots", type=_existing, help="PEM roots; turns TLS to the host on.")


class _Refusals(click.Group):
    """Turns every refusal into one line on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run the command; a CasemateError becomes a ClickException."""
        try:
            return super().invoke(ctx)
        except CasemateError as error:
            raise click.ClickException(f"{error.code}: {error.detail}") from None


@click.group(cls=_Refusals, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="casemate")
def main() -> None:
    """Confidential inference: verify the enclave, then seal."""


@main.command()
@click.argument("output", type=_new)
def keygen(output: Path) -> None:
    """Make an Ed25519 key (publisher or caller) in OUTPUT; print its public key."""
    key = Ed25519PrivateKey.generate()
    write_private_key(output, key)
    click.echo(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex())


@main.command()
@click.argument("target")
@_policy
@_tls
@click.option("--save", type=_new, help="Keep the evidence in this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the steps as JSON.")
def verify(
    target: str, policy: Path, tls_roots: Path | None, save: Path | None, as_json: bool
) -> None:
    """Verify the enclave behind TARGET: host:port, or a file that `--save` wrote.

    Evidence in a file is judged at the present time and without a nonce of yours.
    """
    trust = TrustPolicy.load(policy)
    steps: list[dict[str, Any]] = []

    def observe(step: Step) -> None:
        steps.append(
            {
                "number": step.number,
                "step": step.name,
                "code": str(step.code),
                "outcome": step.outcome,
                "detail": step.detail,
            }
        )
        if not as_json:
            _print_step(step)

    try:
        evidence = _evidence(target, trust, tls_roots, observe)
    except CasemateError as error:
        if as_json:
            verdict = {"verified": False, "code": str(error.code), "detail": error.detail}
            click.echo(json.dumps({**verdict, "steps": steps}, indent=2))
        raise
    if save is not None:
        save.write_bytes(evidence.bundle.serialize())
    if as_json:
        click.echo(json.dumps({"verified": True, **_summary(evidence), "steps": steps}, indent=2))
    else:
        _print_summary(evidence)


def _evidence(
    target: str, trust: TrustPolicy, tls_roots: Path | None, observe: Callable[[Step], None]
) -> VerifiedEvidence:
    stored = Path(target)
    if stored.is_file():
        bundle = EvidenceBundle.parse(stored.read_bytes())
        nonce = parse_document(bundle.attestation_document).nonce
        now = time.time_ns() // 1_000_000
        return verify_evidence(bundle, trust, nonce=nonce, now=now, observe=observe)
    roots = tls_roots.read_bytes() if tls_roots else None
    with Client(target, trust, tls_roots=roots) as client:
        return client.verify(observe=observe)


def _print_step(step: Step) -> None:
    mark, colour = _MARKS[step.outcome]
    name = f"{step.number:>2} {step.name:<14}"
    click.echo(f"  {click.style(mark, fg=colour)} {name} {step.detail}")


def _summary(evidence: VerifiedEvidence) -> dict[str, Any]:
    return {
        "release": evidence.release,
        "audience": evidence.configuration.audience,
        "form": evidence.instance.form,
        "instance_id": evidence.instance.instance_id.hex(),
        "module_id": evidence.document.module_id,
        "timestamp": evidence.document.timestamp,
        "models": [
            {
                "op": entry.op,
                "name": entry.name,
                "version": entry.version,
                "digest": entry.digest.hex(),
                "publisher": entry.publisher.hex(),
            }
            for entry in evidence.log
        ],
    }


def _print_summary(evidence: VerifiedEvidence) -> None:
    click.echo(f"  verified: release {evidence.release}, form {evidence.instance.form}")
    for entry in evidence.log:
        digest = entry.digest.hex()[:16]
        click.echo(f"  {entry.op}: {entry.name}:{entry.version}, digest {digest}...")


@main.command()
@click.argument("target")
@click.argument("model")
@_policy
@_tls
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="NAME=FILE",
    help="A tensor: .npy, .csv (float32) or .json. May be repeated.",
)
@click.option("--version", type=click.IntRange(1), help="Model version; the latest by default.")
@click.option(
    "--caller-key", type=_existing, help="Your Ed25519 key, for models that list callers."
)
@click.option("--kms-key", help="ARN of your own KMS key: data keys come from it.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds.")
def infer(
    target: str,
    model: str,
    policy: Path,
    tls_roots: Path | None,
    inputs: tuple[str, ...],
    version: int | None,
    caller_key: Path | None,
    kms_key: str | None,
    timeout: float,
) -> None:
    """Run MODEL on sealed tensors at TARGET (host:port); print the answer as JSON."""
    with Client(
        target,
        TrustPolicy.load(policy),
        caller_key=read_private_key(caller_key) if caller_key else None,
        data_keys=KmsDataKeys(kms_key) if kms_key else None,
        tls_roots=tls_roots.read_bytes() if tls_roots else None,
    ) as client:
        tensors = dict(_named_tensor(item) for item in inputs)
        result = client.infer(model, tensors, version=version, timeout_s=timeout)
    click.echo(json.dumps(answer_as_json(result)))


def _named_tensor(item: str) -> tuple[str, Any]:
    name, separator, path = item.partition("=")
    if not (name and separator and path):
        raise CasemateError(Code.INVALID_ARGUMENT, f"not NAME=FILE: {item!r}")
    return name, read_tensor(Path(path))


@main.command("seal-model")
@click.argument("model", type=_existing)
@click.argument("output", type=_new)
@click.option("--name", required=True, help="Model name, as callers will ask for it.")
@click.option("--version", required=True, type=click.IntRange(1), help="Model version.")
@click.option("--publisher-key", required=True, type=_existing, help="Your Ed25519 signing key.")
@click.option("--kms-key", required=True, help="ARN of your KMS key.")
@click.option(
    "--caller",
    "callers",
    multiple=True,
    help="Public key (hex) of one who may call the model; repeat, or write `any`.",
)
@click.option("--answer-bucket", default=1024, show_default=True, help="Floor of answers, bytes.")
def seal_model_command(
    model: Path,
    output: Path,
    name: str,
    version: int,
    publisher_key: Path,
    kms_key: str,
    callers: tuple[str, ...],
    answer_bucket: int,
) -> None:
    """Seal the ONNX file MODEL into OUTPUT under your own KMS key."""
    header = seal_onnx(
        model,
        output,
        name=name,
        version=version,
        publisher=read_private_key(publisher_key),
        kms_key=kms_key,
        callers=_callers(callers),
        answer_bucket=answer_bucket,
    )
    summary = {
        "name": header.name,
        "version": header.version,
        "digest": model_digest(header.entries).hex(),
        "publisher": header.publisher.hex(),
        "bytes": output.stat().st_size,
    }
    click.echo(json.dumps(summary, indent=2))


def _callers(texts: tuple[str, ...]) -> Any:  # noqa: ANN401 - Literal["any"] or a tuple
    if not texts:
        raise CasemateError(Code.INVALID_ARGUMENT, "name the callers, or write --caller any")
    if texts == ("any",):
        return "any"
    return tuple(sorted({parse_public_key(text) for text in texts}))


if __name__ == "__main__":
    main()
