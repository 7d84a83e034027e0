"""A trial before a model's requests are joined: does a row's answer depend on its neighbours?

It can show that a model mixes rows, not that it never does: that is its publisher's word (SPEC
8.8.2).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from casemate import limits
from casemate.errors import Code, ModelError, RequestError
from casemate.tensors import BFLOAT16, BYTES, NUMERIC
from casemate_enclave.batching import Job, join, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from casemate.sealed_model import ModelHeader
    from casemate.tensors import TensorSpec
    from casemate_enclave.batching import Tensors
    from casemate_enclave.runtime import LoadedModel

    Array = npt.NDArray[Any]

# Kernels add in another order for other numbers of rows; another row's values would show far above.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3


def check_independent(model: LoadedModel, header: ModelHeader) -> None:
    """Run two unlike rows alone and together; raises ModelError(MODEL_REJECTED) if that differs.

    A model that does not run on such rows at all passes: nothing was shown.
    """
    axis = header.serving.batch_dimension or 0
    outputs = [spec.name for spec in header.outputs]
    deadline = time.monotonic() + limits.TRIAL_S
    jobs = [
        Job(_row(header.inputs, one=one), outputs, deadline, rows=1, axis=axis)
        for one in (False, True, False)
    ]
    try:
        zero, one = (model.run(job.inputs, outputs, deadline) for job in jobs[:2])
        joined = model.run(join(jobs, axis), outputs, deadline)
    except RequestError:
        return
    answers = split(joined, jobs, axis)
    if answers is None:
        raise _rejected("an output does not have as many rows as went in")
    if not all(map(_alike, answers, (zero, one, zero))):
        raise _rejected("a row's answer depends on the rows beside it: no batch_rows for it")


def _row(specs: Sequence[TensorSpec], *, one: bool) -> dict[str, Array]:
    """One row of zeros or ones for each input; what else is free has length 1."""
    return {
        spec.name: _filled(spec.datatype, tuple(length or 1 for length in spec.shape), one=one)
        for spec in specs
    }


def _filled(datatype: str, shape: tuple[int, ...], *, one: bool) -> Array:
    if datatype == BYTES:
        return np.full(shape, "a" if one else "", np.object_)
    if datatype == "BF16":
        return np.full(shape, 0x3F80 if one else 0, np.uint16).view(BFLOAT16)
    return np.full(shape, one, NUMERIC[datatype])


def _alike(answer: Tensors, alone: Tensors) -> bool:
    return all(_near(answer[name], array) for name, array in alone.items())


def _near(joined: Array, alone: Array) -> bool:
    if joined.shape != alone.shape:
        return False
    if joined.dtype.kind != "f":  # a label may turn at a tie; what it stems from is judged
        return True
    return bool(np.allclose(joined, alone, _RELATIVE, _ABSOLUTE, equal_nan=True))


def _rejected(reason: str) -> ModelError:
    return ModelError(Code.MODEL_REJECTED, f"the model: {reason}")
