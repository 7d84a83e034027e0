"""`casemate keygen`, `infer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.attestation import TrustPolicy
from casemate.client.cli.group import (
    caller_key_option,
    host_options,
    input_option,
    kms_key_option,
    new,
    policy_option,
    timeout_option,
    version_option,
)
from casemate.client.cli.streaming import in_one_stream
from casemate.client.client import Client
from casemate.client.files import (
    answer_as_json,
    read_private_key,
    read_tensor,
    write_private,
    write_private_key,
)
from casemate.client.kms import KmsDataKeys
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from casemate.client.access import HostAccess


@click.command(short_help="Make an Ed25519 key for a publisher or a caller.")
@click.argument("output", type=new)
def keygen(output: Path) -> None:
    """Make an Ed25519 key (publisher or caller) in OUTPUT; print its public key."""
    key = Ed25519PrivateKey.generate()
    write_private_key(output, key)
    click.echo(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex())


@click.command(short_help="Run a model on sealed tensors.")
@click.argument("target")
@click.argument("model")
@policy_option
@host_options
@input_option
@version_option
@caller_key_option
@kms_key_option
@click.option("--receipt", type=new, help="Ask for a receipt and keep it in this new file.")
@timeout_option
@click.option(
    "--rows",
    type=click.IntRange(1),
    help="Ask in one stream, so many rows of the inputs at a time; an answer a line.",
)
@click.option("--pieces", is_flag=True, help="A line for each piece that the model gives.")
def infer(
    target: str,
    model: str,
    policy: Path,
    access: HostAccess,
    inputs: tuple[str, ...],
    version: int | None,
    caller_key: Path | None,
    kms_key: str | None,
    receipt: Path | None,
    timeout: float,
    rows: int | None,
    pieces: bool,
) -> None:
    """Run MODEL (NAME or NAME:VERSION) on sealed tensors at TARGET (host:port).

    Prints the answer as JSON. The file of a receipt has question and answer in the clear, and is
    readable by you alone.
    """
    if [rows is not None, pieces, receipt is not None].count(True) > 1:
        raise click.UsageError("choose one of --rows, --pieces, --receipt")
    if receipt is not None and receipt.exists():
        raise CasemateError(Code.INVALID_ARGUMENT, f"{receipt} exists: it is not overwritten")
    with Client(
        target,
        TrustPolicy.load(policy),
        caller_key=read_private_key(caller_key) if caller_key else None,
        data_keys=KmsDataKeys(kms_key) if kms_key else None,
        access=access,
    ) as client:
        tensors = dict(named_tensor(item) for item in inputs)
        if rows is not None or pieces:
            asked = client, model, version, tensors
            for result in in_one_stream(*asked, rows=rows, timeout_s=timeout):
                click.echo(json.dumps(answer_as_json(result)))
            return
        result = client.infer(
            model, tensors, version=version, receipt=receipt is not None, timeout_s=timeout
        )
    if receipt is not None and result.receipt is not None:
        write_private(receipt, result.receipt.encode())
    click.echo(json.dumps(answer_as_json(result)))


def named_tensor(item: str) -> tuple[str, Any]:
    """Read the tensor that ``NAME=FILE`` names."""
    name, separator, path = item.partition("=")
    if not (name and separator and path):
        raise CasemateError(Code.INVALID_ARGUMENT, f"not NAME=FILE: {item!r}")
    return name, read_tensor(Path(path))
