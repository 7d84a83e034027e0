"""Why a model cannot be loaded, and how a run can fail: closed sets.

A worker names one by its number, so that what reaches the host and callers is never a worker's, or
onnxruntime's, own text: that quotes names, shapes and values.
"""

from __future__ import annotations

from enum import Enum, unique
from typing import Self

from casemate.errors import Code, ModelError, RequestError


@unique
class Refusal(Enum):
    """Reasons of MODEL_REJECTED; ``{}`` is the place of an input or output."""

    RUNTIME = "the model: onnxruntime refuses it"
    PROVIDERS = "the model: it does not run on the configured providers"
    OUTSIDE = "the model: it refers to data outside the sealed file"
    ROWS = "the model: its batch_dimension has a fixed length"
    NO_INPUT = "the model: it has not every declared input"
    NO_OUTPUT = "the model: it has not every declared output"
    MORE_INPUTS = "the model: it has an input that is not declared"
    INPUT = "the model: input {} differs from the declared one"
    OUTPUT = "the model: output {} differs from the declared one"
    LOOP_STATE = "the model: its loop feeds an output to an input that does not take it"
    LOOP_STOP = "the model: its loop's stop output is not a BOOL"
    DEPTH = "ONNX model: the graph is nested too deeply"
    EXTERNAL = "ONNX model: external data does not name one file"
    FIELD = "ONNX model: a field number is too large"
    WIRE = "ONNX model: unknown wire type"
    END = "ONNX model: a field passes the end"
    INTEGER = "ONNX model: bad integer"
    MESSAGE = "ONNX model: not a message"
    TEXT = "ONNX model: text is not UTF-8"
    ENDED = "the model: the process that loads it ended"
    TIME = "the model: it did not load in time"
    VARIABLE = "the model: its shapes vary, which OpenVINO does not run safely"

    @property
    def number(self) -> int:
        """Its place in the set."""
        return list(Refusal).index(self)


class RefusedError(ModelError):
    """MODEL_REJECTED for one of the reasons above."""

    def __init__(self, refusal: Refusal, place: int = 0) -> None:
        super().__init__(Code.MODEL_REJECTED, refusal.value.format(place))
        self.refusal = refusal
        self.place = place

    @classmethod
    def numbered(cls, number: int, place: int) -> Self:
        """Rebuild what a worker said; raises IndexError."""
        return cls(list(Refusal)[number], place)


@unique
class Failure(Enum):
    """How a run fails, with what its caller is told."""

    STOPPED = "the model was stopped at the deadline, or nobody waited any more"
    MEMORY = "the model needs more memory for these inputs than runs may take"
    FAILED = "the model failed on these inputs"
    ENDED = "the model's process ended on these inputs, twice"

    @property
    def code(self) -> Code:
        """The reason code."""
        return Code.DEADLINE_EXCEEDED if self is Failure.STOPPED else Code.MODEL_FAILED


class RunError(RequestError):
    """A run that failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code, failure.value)
        self.failure = failure
