"""Which model a name means: ``name``, ``name:version``, ``name:latest`` (SPEC 5.6, 8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes

from casemate.errors import Code, RequestError
from casemate.tensors import BFLOAT16

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from casemate.attestation import LogEntry

_LATEST = "latest"
_KIND = BFLOAT16.kind  # of no other datatype: quicker than to compare these

# By name and version; None stands for the highest version.
Loaded = dict[tuple[str, int | None], "LogEntry"]


def split_version(model: str, version: int | None) -> tuple[str, int | None]:
    """Return name and version of ``model``; None is the latest.

    Raises RequestError(INVALID_ARGUMENT) for a version that is no number above zero, or that
    contradicts ``version``.
    """
    name, separator, text = model.partition(":")
    if not separator or text == _LATEST:
        return name, version
    named = int(text) if text.isascii() and text.isdecimal() else 0
    if not named or version not in (None, named):
        detail = f"{model!r}: not NAME, NAME:VERSION or NAME:latest, or contradicts the version"
        raise RequestError(Code.INVALID_ARGUMENT, detail)
    return name, named


def loaded_models(log: Iterable[LogEntry]) -> Loaded:
    """Return what a measurement log says is loaded now (SPEC 3.5)."""
    live: Loaded = {}
    for entry in log:
        if entry.op == "load":
            live[entry.name, entry.version] = entry
        else:
            live.pop((entry.name, entry.version), None)
    for entry in sorted(live.values(), key=lambda entry: entry.version):
        live[entry.name, None] = entry
    return live


def with_bfloat16(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return ``outputs`` with BF16 as ``ml_dtypes.bfloat16``, which numpy computes with."""
    for name, array in outputs.items():
        if array.dtype.kind == _KIND:
            outputs[name] = array.view(ml_dtypes.bfloat16)
    return outputs
