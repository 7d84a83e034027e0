"""Tensors between enclave and worker: a description, and bytes at the places that follow from it.

Both sides read the other's as a stranger's: every size is checked against what there is before an
array is made of it. Descriptions repeat from run to run and are remembered by their bytes.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from casemate import cbor, limits
from casemate.oip import strings
from casemate.tensors import BYTES, NUMERIC

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from casemate.wire import Buffer

    Array = npt.NDArray[Any]
    Tensors = Mapping[str, Array]
    _Described = tuple[str, str, tuple[int, ...], int]  # as in ``Part``

ALIGNMENT: Final = 64  # as numpy's kernels and onnxruntime's like it best
_SMALL: Final = 4 * limits.KIB  # a copy of so much costs less than to do without it
_NAMES: Final = {dtype: name for name, dtype in NUMERIC.items()}
_RANK_MAX: Final = 32  # of outputs that no header declares; numpy takes 64
_TENSORS_MAX: Final = 4 * limits.TENSORS_MAX  # declared and undeclared ones of a model


class PacketError(ValueError):
    """The other side says what cannot be."""


class Part(NamedTuple):
    """One tensor as it is described; ``size`` in bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


class Placed(NamedTuple):
    """Where a tensor of ``size`` bytes lies; without a dtype it is text."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    size: int
    at: int
    gap: bytes  # zeros up to where the next one lies


class Layout(NamedTuple):
    """What a description says: the outputs that are asked for, and where the tensors lie."""

    wanted: tuple[str, ...]
    tensors: tuple[Placed, ...]
    total: int


class Packed(NamedTuple):
    """Tensors ready to leave; ``raws`` are arrays of numbers, or their bytes, or those of text."""

    description: bytes
    layout: Layout
    raws: list[Array | bytes]


def pack(tensors: Tensors, wanted: Sequence[str] = ()) -> Packed:
    """Describe ``tensors``; numbers are copied only if they are few."""
    parts: list[_Described] = []
    raws: list[Array | bytes] = []
    for name, array in tensors.items():
        datatype, size = _NAMES.get(array.dtype), array.nbytes
        if datatype is None:
            raw = strings.pack(array.reshape(-1).tolist())
            datatype, size = BYTES, len(raw)
            raws.append(raw)
        else:
            raws.append(array.tobytes() if size <= _SMALL else array)
        parts.append((name, datatype, array.shape, size))
    return Packed(*_described(tuple(wanted), tuple(parts)), raws)


@functools.lru_cache(maxsize=limits.DESCRIPTIONS_KEPT)
def _described(wanted: tuple[str, ...], described: tuple[_Described, ...]) -> tuple[bytes, Layout]:
    parts = tuple(Part(*fields) for fields in described)
    description = cbor.encode(
        [list(wanted), [[*part[:2], list(part[2]), part[3]] for part in parts]]
    )
    if len(description) > limits.WORKER_DESCRIPTION_MAX:
        raise PacketError("more names than a message takes")
    return description, _layout(wanted, parts)


def _layout(wanted: tuple[str, ...], parts: tuple[Part, ...]) -> Layout:
    tensors, at = [], 0
    for name, datatype, shape, size in parts:
        gap = bytes(-size % ALIGNMENT)
        tensors.append(Placed(name, NUMERIC.get(datatype), shape, size, at, gap))
        at += size + len(gap)
    return Layout(wanted, tuple(tensors), at)


def aligned(size: int) -> int:
    """Round up to the next place that a tensor may begin at."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@functools.lru_cache(maxsize=limits.DESCRIPTIONS_KEPT)
def read_description(description: bytes) -> Layout:
    """Parse and check; raises PacketError."""
    try:
        wanted, parts = map(tuple, cbor.decode(description))
        read = tuple(_part(*fields) for fields in parts)
    except (cbor.CborError, TypeError, ValueError, KeyError) as error:
        raise PacketError("not a description") from error
    names = [part.name for part in read]
    if len(set(names)) != len(names) or len(names) > _TENSORS_MAX:
        raise PacketError("tensors that are no set")
    if not all(isinstance(name, str) for name in wanted) or len(wanted) > _TENSORS_MAX:
        raise PacketError("outputs that are no names")
    return _layout(wanted, read)


def _part(name: str, datatype: str, shape: list[int], size: int) -> Part:
    if type(name) is not str or type(shape) is not list or not all(map(_whole, (size, *shape))):
        raise PacketError("not a tensor")
    if len(shape) > _RANK_MAX:
        raise PacketError("too many dimensions")
    if datatype != BYTES and math.prod(shape) * NUMERIC[datatype].itemsize != size:
        raise PacketError("a size that is not the shape's")
    return Part(name, datatype, tuple(shape), size)


def _whole(value: object) -> bool:
    return type(value) is int


def scatter(packed: Packed) -> list[Buffer]:
    """Return the bytes of ``packed`` in pieces, each tensor at its place."""
    pieces: list[Any] = []
    for raw, placed in zip(packed.raws, packed.layout.tensors, strict=True):
        pieces += (raw if isinstance(raw, bytes) else np.ascontiguousarray(raw), placed.gap)
    return pieces


def place(packed: Packed, memory: memoryview) -> None:
    """Copy the bytes of ``packed`` into ``memory``, each tensor to its place."""
    for raw, placed in zip(packed.raws, packed.layout.tensors, strict=True):
        if isinstance(raw, bytes):
            memory[placed.at : placed.at + placed.size] = raw
        else:
            np.ndarray(placed.shape, placed.dtype, memory, placed.at)[...] = raw


def take(layout: Layout, memory: memoryview, start: int, *, copy: bool) -> dict[str, Array]:
    """Return the tensors that lie in ``memory`` from ``start`` on, as views unless ``copy``.

    Copies are read-only; text is always copied. Raises PacketError if it is none, or passes the
    end.
    """
    if start + layout.total > len(memory):
        raise PacketError("tensors pass the end")
    arrays: dict[str, Array] = {}
    try:
        for name, dtype, shape, size, place, _ in layout.tensors:
            at = start + place
            if dtype is None:
                arrays[name] = _text(shape, bytes(memory[at : at + size]))
            elif copy:
                arrays[name] = np.ndarray(shape, dtype, bytes(memory[at : at + size]))
            else:
                arrays[name] = np.ndarray(shape, dtype, memory, at)
    except ValueError as error:  # numpy's: dimensions that no array can have
        raise PacketError("not an array") from error
    return arrays


def _text(shape: tuple[int, ...], raw: bytes) -> Array:
    count = math.prod(shape)
    if not strings.fit(memoryview(raw), count):
        raise PacketError("text that is not its shape's")
    array = np.empty(count, np.object_)
    try:
        array[:] = [item.decode() for item in strings.unpack(memoryview(raw))]
    except UnicodeDecodeError:
        raise PacketError("text that is not UTF-8") from None
    return array.reshape(shape)
