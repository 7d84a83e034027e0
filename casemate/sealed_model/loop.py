"""The loop of a model that answers piece by piece (SPEC 8.2, 8.9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate import cbor, limits
from casemate.errors import Code, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.tensors import TensorSpec


def _require(condition: object, what: str) -> None:
    if not condition:
        raise ModelError(Code.MODEL_MALFORMED, f"model header: loop: {what}")


@dataclass(frozen=True, slots=True)
class LoopState:
    """An output of one step that is an input of the next."""

    output: str
    input: str


@dataclass(frozen=True, slots=True)
class ModelLoop:
    """How a model that is one step is run again and again (SPEC 8.9).

    It ends with the step whose output ``stop`` (BOOL, one element) is true, and after ``steps``.
    ``interval`` in milliseconds paces the answers.
    """

    state: tuple[LoopState, ...]
    stop: str | None
    steps: int
    interval: int = 0

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that the loop itself needs of each step."""
        stop = () if self.stop is None else (self.stop,)
        return (*(state.output for state in self.state), *stop)

    def check(self, inputs: Sequence[TensorSpec]) -> None:
        """Refuse what SPEC 8.2 does not allow; raises ModelError (MODEL_MALFORMED)."""
        names = [state.input for state in self.state]
        _require(1 <= len(names) <= limits.TENSORS_MAX, "state out of bounds")
        known = {spec.name for spec in inputs}
        _require(len(set(names)) == len(names) and known >= set(names), "inputs")
        for name in self.outputs:
            _require(1 <= len(name.encode()) <= limits.NAME_MAX, "name out of bounds")
        _require(1 <= self.steps <= limits.LOOP_STEPS_MAX, "steps out of bounds")
        _require(self.interval <= limits.LOOP_INTERVAL_MAX, "interval out of bounds")

    def as_map(self) -> dict[str, cbor.Value]:
        """Return the CBOR map of SPEC 8.2."""
        state = [{"output": state.output, "input": state.input} for state in self.state]
        return {"state": state, "stop": self.stop, "steps": self.steps, "interval": self.interval}


def parse_loop(value: cbor.Value) -> ModelLoop | None:
    """Read the CBOR map; raises cbor.CborError."""
    if value is None:
        return None
    kinds: dict[str, type | tuple[type, ...]] = {
        "state": list,
        "stop": (str, type(None)),
        "steps": int,
        "interval": int,
    }
    fields = cbor.fields(value, kinds)
    states = [cbor.fields(state, {"output": str, "input": str}) for state in fields["state"]]
    fields["state"] = tuple(LoopState(**state) for state in states)
    return ModelLoop(**fields)
