"""`casemate models`: what a verified enclave has loaded, and what a model takes and gives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from casemate.attestation import TrustPolicy
from casemate.attestation.details import moment
from casemate.client.cli.group import (
    caller_key_option,
    host_options,
    json_option,
    policy_option,
    timeout_option,
)
from casemate.client.cli.tables import tree
from casemate.client.client import Client
from casemate.client.files import read_private_key
from casemate.client.models import loaded_models

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from casemate.attestation import VerifiedEvidence
    from casemate.client.access import HostAccess
    from casemate.oip.metadata import ModelMetadata
    from casemate.tensors import TensorSpec

Facts = dict[str, Any]


@click.command(short_help="Show which models a verified enclave has loaded.")
@click.argument("target")
@click.argument("model", required=False)
@policy_option
@host_options
@caller_key_option
@timeout_option
@json_option
def models(
    target: str,
    model: str | None,
    policy: Path,
    access: HostAccess,
    caller_key: Path | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Show the models that the enclave at TARGET (host:port) has loaded, by its verified log.

    With MODEL (NAME or NAME:VERSION), ask it inside the seal for the model's inputs and outputs.
    """
    with Client(
        target,
        TrustPolicy.load(policy),
        caller_key=read_private_key(caller_key) if caller_key else None,
        access=access,
    ) as client:
        if model is None:
            facts = _loaded(client.verify(timeout_s=timeout))
        else:
            facts = _described(client.metadata(model, timeout_s=timeout))
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(tree(facts, 0)))


def _loaded(evidence: VerifiedEvidence) -> Facts:
    entries = {key: entry for key, entry in loaded_models(evidence.log).items() if key[1]}
    return {
        "models": [
            {
                "name": entry.name,
                "version": entry.version,
                "digest": entry.digest.hex(),
                "publisher": entry.publisher.hex(),
                "loaded": moment(entry.time),
            }
            for _, entry in sorted(entries.items())
        ]
    }


def _described(metadata: ModelMetadata) -> Facts:
    return {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "inputs": _tensors(metadata.inputs),
        "outputs": _tensors(metadata.outputs),
    }


def _tensors(specs: Sequence[TensorSpec]) -> list[Facts]:
    return [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": f"[{', '.join(str(length) if length else 'any' for length in spec.shape)}]",
        }
        for spec in specs
    ]
