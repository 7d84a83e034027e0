"""`casemate infer` with many questions, or an answer in pieces, in one stream (SPEC 5.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from casemate.client import Client, Inference


def in_one_stream(
    client: Client,
    model: str,
    version: int | None,
    tensors: Mapping[str, np.ndarray],
    *,
    rows: int | None,
    timeout_s: float,
) -> Iterator[Inference]:
    """Yield the answers to ``rows`` rows at a time; without ``rows`` the pieces of one answer."""
    with client.stream(model, version=version, timeout_s=timeout_s) as stream:
        if rows is None:
            yield from stream.pieces(tensors)
        else:
            yield from stream.map(_batches(tensors, rows))


def _batches(tensors: Mapping[str, np.ndarray], rows: int) -> Iterator[dict[str, np.ndarray]]:
    counts = {len(tensor) if tensor.ndim else 0 for tensor in tensors.values()}
    if len(counts) != 1 or not (count := counts.pop()):
        detail = "--rows: the inputs have no rows, or not equally many"
        raise CasemateError(Code.INVALID_ARGUMENT, detail)
    for start in range(0, count, rows):
        yield {name: tensor[start : start + rows] for name, tensor in tensors.items()}
