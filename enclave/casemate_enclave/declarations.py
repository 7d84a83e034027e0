"""Whether what a sealed model's header says of it is what the model has (SPEC 8.2, 8.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casemate_enclave.refusals import Refusal, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnxruntime

    from casemate.sealed_model import ModelHeader, ModelLoop
    from casemate.tensors import TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class _Kind(NamedTuple):
    """What a declaration is refused for; ``more``: that it leaves something out."""

    missing: Refusal
    more: Refusal | None
    other: Refusal


_INPUTS = _Kind(Refusal.NO_INPUT, Refusal.MORE_INPUTS, Refusal.INPUT)
_OUTPUTS = _Kind(Refusal.NO_OUTPUT, None, Refusal.OUTPUT)


def check_declarations(header: ModelHeader, session: onnxruntime.InferenceSession) -> None:
    """Refuse a header that the model does not bear out; raises RefusedError."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    _check_signature(_INPUTS, header.inputs, inputs)
    _check_signature(_OUTPUTS, header.outputs, outputs)
    if header.loop is not None:
        _check_loop(header.loop, inputs, outputs)
    _check_rows(header, [*inputs, *outputs])


def _check_rows(header: ModelHeader, nodes: Sequence[onnxruntime.NodeArg]) -> None:
    """Refuse to join requests for a model that was made for a fixed number of rows."""
    axis = header.serving.batch_dimension
    if axis is None:
        return
    declared = {spec.name for spec in (*header.inputs, *header.outputs)}
    for node in nodes:
        if node.name in declared and len(node.shape) > axis and isinstance(node.shape[axis], int):
            raise RefusedError(Refusal.ROWS)


def _check_signature(
    kind: _Kind, declared: Sequence[TensorSpec], actual: Sequence[onnxruntime.NodeArg]
) -> None:
    """Refuse a declaration that the model does not bear out; it may leave outputs undeclared."""
    found = {node.name: node for node in actual}
    names = [spec.name for spec in declared]
    if len(set(names)) != len(names) or not found.keys() >= set(names):
        raise RefusedError(kind.missing)
    if kind.more is not None and len(found) != len(names):
        raise RefusedError(kind.more)
    for index, spec in enumerate(declared):
        node = found[spec.name]
        if _DATATYPES.get(node.type) != spec.datatype or not _compatible(spec.shape, node.shape):
            raise RefusedError(kind.other, index)


def _check_loop(
    loop: ModelLoop,
    inputs: Sequence[onnxruntime.NodeArg],
    outputs: Sequence[onnxruntime.NodeArg],
) -> None:
    """Refuse a loop whose outputs the model does not have, or cannot take as inputs."""
    takes = {node.name: node.type for node in inputs}
    gives = {node.name: node.type for node in outputs}
    for state in loop.state:
        if state.output not in gives or takes.get(state.input) != gives[state.output]:
            raise RefusedError(Refusal.LOOP_STATE)
    if loop.stop is not None and gives.get(loop.stop) != "tensor(bool)":
        raise RefusedError(Refusal.LOOP_STOP)


def _compatible(declared: Sequence[int], actual: Sequence[int | str | None]) -> bool:
    """Whether some shape satisfies both; onnxruntime gives no dimensions for an unknown rank."""
    if not actual:
        return True
    pairs = zip(declared, actual, strict=False)
    return len(declared) == len(actual) and all(
        dimension in {0, other} or not isinstance(other, int) for dimension, other in pairs
    )
