"""How a publisher wants a model to be served: part of the signed header (SPEC 8.2.1)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from casemate import cbor, limits
from casemate.errors import Code, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.tensors import TensorSpec

_BOUNDS: Final = {
    "batch_dimension": (0, limits.RANK_MAX - 1),
    "batch_rows": (2, limits.BATCH_ROWS_MAX),
    "request_rows": (1, limits.REQUEST_MAX),
    "concurrency": (1, limits.MODEL_REQUESTS_MAX),
    "queue": (0, limits.MODEL_REQUESTS_MAX),
    "run_ms": (1, limits.FRAME_BUDGET_MAX),
}


@dataclass(frozen=True, slots=True)
class Serving:
    """Bounds that a model sets itself; None leaves one to the enclave. They narrow, never widen.

    ``batch_dimension`` is the dimension that counts rows, the same in every input and output;
    ``batch_rows`` lets the enclave run requests of several callers together, up to so many rows.
    ``request_rows`` bounds one request, ``concurrency`` the runs at a time, ``queue`` the requests
    that wait for one, ``run_ms`` a run's time.
    """

    batch_dimension: int | None = None
    batch_rows: int | None = None
    request_rows: int | None = None
    concurrency: int | None = None
    queue: int | None = None
    run_ms: int | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            good = value is None or (type(value) is int and least <= value <= most)
            _require(good, f"{name} out of bounds")
        rows = self.batch_rows is not None or self.request_rows is not None
        _require(self.batch_dimension is not None or not rows, "rows without batch_dimension")

    def check(self, tensors: Sequence[TensorSpec]) -> None:
        """Refuse tensors without a free batch dimension; raises ModelError (MODEL_MALFORMED)."""
        at = self.batch_dimension
        if at is not None:
            free = all(len(spec.shape) > at and spec.shape[at] == 0 for spec in tensors)
            _require(free, "a tensor's batch_dimension is missing or fixed")

    def as_map(self) -> dict[str, cbor.Value]:
        """Return the CBOR map of SPEC 8.2.1."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def parse(cls, value: Any) -> Serving:  # noqa: ANN401 - decoded CBOR
        """Read the map; raises CborError for another layout, ModelError for values."""
        return cls(**cbor.fields(value, dict.fromkeys(_BOUNDS, (int, type(None)))))


def _require(condition: object, what: str) -> None:
    if not condition:
        raise ModelError(Code.MODEL_MALFORMED, f"model header: serving: {what}")
