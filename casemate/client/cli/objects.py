"""`casemate seal-data`, `infer-sealed`: data at rest that its readers never see (SPEC 8.5)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from casemate.attestation import TrustPolicy
from casemate.client.cli.calls import named_tensor
from casemate.client.cli.group import (
    existing,
    host_options,
    input_option,
    policy_option,
    timeout_option,
    version_option,
)
from casemate.client.client import Client
from casemate.client.files import answer_as_json, parse_public_key, read_private_key
from casemate.client.objects import read_object, seal_tensors, write_object
from casemate.errors import CasemateError, Code
from casemate.sealed_data import SealedData
from casemate.wire import HASH_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.client.access import HostAccess


@click.command("seal-data", short_help="Seal tensors at rest, for readers who never see them.")
@click.argument("output")
@policy_option
@input_option
@click.option("--kms-key", required=True, help="ARN of your KMS key, made for purpose `object`.")
@click.option(
    "--reader",
    "readers",
    multiple=True,
    required=True,
    metavar="HEX",
    help="Public key of one who may have a model run on the data. May be repeated.",
)
@click.option(
    "--model-digest",
    "models",
    multiple=True,
    required=True,
    metavar="HEX",
    help="A model that may see the data, as `seal-model` prints it. May be repeated.",
)
def seal_data_command(
    output: str,
    policy: Path,
    inputs: tuple[str, ...],
    kms_key: str,
    readers: tuple[str, ...],
    models: tuple[str, ...],
) -> None:
    """Seal tensors into OUTPUT, a new file or s3://BUCKET/KEY, under your own KMS key.

    The readers get answers of the listed models and never the data.
    """
    sealed = seal_tensors(
        dict(named_tensor(item) for item in inputs),
        policy=TrustPolicy.load(policy),
        kms_key=kms_key,
        readers={parse_public_key(text) for text in readers},
        models={_digest(text) for text in models},
    )
    write_object(output, sealed)
    header = SealedData.parse(sealed).header
    summary = {
        "object": SealedData.parse(sealed).digest.hex(),
        "audience": header.audience,
        "readers": [key.hex() for key in header.readers],
        "models": [digest.hex() for digest in header.models],
        "bytes": len(sealed),
    }
    click.echo(json.dumps(summary, indent=2))


@click.command("infer-sealed", short_help="Run a model on data sealed at rest.")
@click.argument("target")
@click.argument("model")
@click.argument("location", metavar="OBJECT")
@policy_option
@host_options
@click.option("--caller-key", required=True, type=existing, help="Your Ed25519 key, as a reader.")
@version_option
@timeout_option
def infer_sealed(
    target: str,
    model: str,
    location: str,
    policy: Path,
    access: HostAccess,
    caller_key: Path,
    version: int | None,
    timeout: float,
) -> None:
    """Run MODEL at TARGET (host:port) on OBJECT, a file or s3://BUCKET/KEY; print the answer."""
    with Client(
        target,
        TrustPolicy.load(policy),
        caller_key=read_private_key(caller_key),
        access=access,
    ) as client:
        sealed = read_object(location)
        result = client.infer_sealed(model, sealed, version=version, timeout_s=timeout)
    click.echo(json.dumps(answer_as_json(result)))


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != HASH_BYTES:
        raise CasemateError(Code.INVALID_ARGUMENT, f"not a model digest (96 hex digits): {text!r}")
    return digest
