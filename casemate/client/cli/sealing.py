"""`casemate seal-model`."""

from __future__ import annotations

import contextlib
import functools
import json
from typing import TYPE_CHECKING, Any

import click

from casemate.client.cli.group import existing, new
from casemate.client.cli.loops import loop_options
from casemate.client.cli.progress import progress_bar
from casemate.client.files import parse_public_key, read_private_key
from casemate.client.optimising import optimised
from casemate.client.seal import seal_onnx
from casemate.errors import CasemateError, Code
from casemate.sealed_model import Serving, model_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casemate.sealed_model import ModelLoop


def _serving_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what SPEC 8.2.1 lets a publisher say, and pass it on as ``serving``."""

    @click.option(
        "--batch-rows",
        type=click.IntRange(2),
        help="Let requests of several callers run together, up to so many rows. The model must "
        "compute each row from that row alone.",
    )
    @click.option(
        "--batch-dimension",
        type=click.IntRange(0),
        help="The dimension that counts rows: 0 unless said otherwise.",
    )
    @click.option("--request-rows", type=click.IntRange(1), help="Most rows of one request.")
    @click.option("--concurrency", type=click.IntRange(1), help="Most runs at a time.")
    @click.option("--queue", type=click.IntRange(0), help="Most requests that wait for a run.")
    @click.option("--run-ms", type=click.IntRange(1), help="Most milliseconds of one run.")
    @functools.wraps(command)
    def run(
        *,
        batch_rows: int | None,
        batch_dimension: int | None,
        request_rows: int | None,
        concurrency: int | None,
        queue: int | None,
        run_ms: int | None,
        **named: object,
    ) -> None:
        if batch_dimension is None and (batch_rows or request_rows):
            batch_dimension = 0
        serving = Serving(batch_dimension, batch_rows, request_rows, concurrency, queue, run_ms)
        command(serving=serving, **named)

    return run


@click.command("seal-model", short_help="Seal an ONNX model under your own KMS key.")
@click.argument("model", type=existing)
@click.argument("output", type=new)
@click.option("--name", required=True, help="Model name, as callers will ask for it.")
@click.option("--version", required=True, type=click.IntRange(1), help="Model version.")
@click.option("--publisher-key", required=True, type=existing, help="Your Ed25519 signing key.")
@click.option("--kms-key", required=True, help="ARN of your KMS key.")
@click.option(
    "--caller",
    "callers",
    multiple=True,
    help="Public key (hex) of one who may call the model; repeat, or write `any`.",
)
@click.option(
    "--external",
    multiple=True,
    type=existing,
    help="A file that holds weights of the model (ONNX external data). May be repeated.",
)
@click.option("--answer-bucket", default=1024, show_default=True, help="Floor of answers, bytes.")
@click.option(
    "--optimise",
    is_flag=True,
    help="Fold constants and drop what has no effect first; needs onnxruntime.",
)
@_serving_options
@loop_options
def seal_model_command(
    model: Path,
    output: Path,
    name: str,
    version: int,
    publisher_key: Path,
    kms_key: str,
    callers: tuple[str, ...],
    external: tuple[Path, ...],
    answer_bucket: int,
    optimise: bool,
    serving: Serving,
    loop: ModelLoop | None,
) -> None:
    """Seal the ONNX file MODEL into OUTPUT under your own KMS key."""
    if optimise and external:
        raise CasemateError(Code.INVALID_ARGUMENT, "--optimise takes a model without --external")
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(optimised(model)) if optimise else model
        total = sum(path.stat().st_size for path in (source, *external))
        progress = stack.enter_context(progress_bar(total, "sealing"))
        header = seal_onnx(
            source,
            output,
            name=name,
            version=version,
            publisher=read_private_key(publisher_key),
            kms_key=kms_key,
            callers=_callers(callers),
            answer_bucket=answer_bucket,
            external=external,
            serving=serving,
            loop=loop,
            progress=progress,
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
