"""How tensors lie in their raw contents, and arrays made of these (SPEC 5.6.2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from casemate import limits
from casemate.errors import Code, RequestError
from casemate.oip import strings
from casemate.oip.messages import invalid_request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from casemate.oip.alike import Table
    from casemate.oip.messages import Description

    Array = npt.NDArray[Any]

BYTES: Final = "BYTES"
# numpy has no bfloat16: here a type of its own, around the 16 bits (SPEC 5.6.2).
BFLOAT16: Final = np.dtype([("bfloat16", "<u2")])
NUMERIC: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES: Final = frozenset(NUMERIC) | {BYTES}

_CHECKED: Final = frozenset({"BOOL", BYTES})  # whose contents may be bad at their right length
SMALL: Final = 4 * limits.KIB  # a copy of so much costs less than a view of it
NAMES: Final = {dtype: name for name, dtype in NUMERIC.items()}


class Layout(NamedTuple):
    """How a described tensor lies in its raw contents; without a dtype it has strings."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    length: int
    size: int  # in bytes; of strings only their own lengths tell


def invalid_input(name: str, detail: str) -> RequestError:
    """Return the error of what a message says about the tensor ``name``."""
    return RequestError(Code.INVALID_INPUT, f"tensor {name[:64]!r}: {detail}")


def layouts_of(described: Sequence[Description]) -> list[Layout]:
    """Return how each tensor lies in its raw contents; raises RequestError (INVALID_INPUT)."""
    layouts = []
    texts = 0
    for tensor in described:
        layout = _layout(tensor)
        texts += layout.length if layout.dtype is None else 0
        layouts.append(layout)
        if texts > limits.STRINGS_MAX:
            detail = f"more than {limits.STRINGS_MAX} strings in one message"
            raise invalid_input(tensor.name, detail)
    return layouts


def _layout(tensor: Description) -> Layout:
    name, datatype, shape = tensor
    if len(shape) > limits.RANK_MAX:
        raise invalid_input(name, f"rank {len(shape)}, limit {limits.RANK_MAX}")
    # Counting an empty dimension as one keeps an empty tensor from naming absurd lengths.
    if min(shape, default=0) < 0 or (
        math.prod(length or 1 for length in shape) > limits.ELEMENTS_MAX
    ):
        raise invalid_input(name, f"shape {list(shape)} is out of bounds")
    count = math.prod(shape)
    if datatype == BYTES:
        if count > limits.STRINGS_MAX:
            raise invalid_input(name, f"{count} strings, limit {limits.STRINGS_MAX}")
        return Layout(name, datatype, shape, None, count, 0)
    dtype = NUMERIC.get(datatype)
    if dtype is None:
        raise invalid_input(name, f"unknown datatype {datatype[:16]!r}")
    return Layout(name, datatype, shape, dtype, count, count * dtype.itemsize)


def read_arrays(
    layouts: Sequence[Layout], raws: Sequence[memoryview], *, text: bool, align: bool
) -> dict[str, Array]:
    """Return the tensors by name; no array is made before all raw contents were found to fit."""
    if len(layouts) != len(raws):
        raise invalid_request(f"{len(layouts)} tensors and {len(raws)} raw contents")
    for layout, raw in zip(layouts, raws, strict=True):
        if len(raw) != layout.size or layout.datatype in _CHECKED:
            _check_fit(layout, raw)
    arrays: dict[str, Array] = {}
    for layout, raw in zip(layouts, raws, strict=True):
        arrays[layout.name] = _array(layout, raw, text=text, align=align)
    return arrays


def stacked_arrays(layouts: Sequence[Layout], tables: Sequence[Table]) -> dict[str, Array] | None:
    """Return tensors by name, read-only, from rows of raw contents; None if that takes checks."""
    arrays: dict[str, Array] = {}
    if len(layouts) != len(tables):
        return None
    for (name, datatype, shape, dtype, _, size), table in zip(layouts, tables, strict=True):
        if dtype is None or datatype in _CHECKED or not size or table.shape[1] != size:
            return None
        array = np.ascontiguousarray(table).view(dtype).reshape(len(table), *shape)
        array.flags.writeable = False
        arrays[name] = array
    return arrays


def _check_fit(layout: Layout, raw: memoryview) -> None:
    """Refuse raw contents that are not those of datatype and shape."""
    name, datatype, shape, dtype, _, size = layout
    if dtype is None:
        _check_strings(layout, raw)
        return
    if len(raw) != size:
        detail = f"{size} for {datatype} of shape {list(shape)}"
        raise invalid_input(name, f"{len(raw)} bytes, {detail}")
    if datatype == "BOOL" and size and np.frombuffer(raw, np.uint8).max() > 1:
        raise invalid_input(name, "a BOOL byte is neither 0 nor 1")


def _check_strings(layout: Layout, raw: memoryview) -> None:
    if not strings.fit(raw, layout.length):
        detail = f"raw contents are not {layout.length} strings with their lengths before them"
        raise invalid_input(layout.name, detail)


def _array(layout: Layout, raw: memoryview, *, text: bool, align: bool) -> Array:
    array: Array
    if layout.dtype is None:
        array = np.empty(layout.shape, np.object_)
        array.reshape(-1)[:] = _strings(layout.name, raw, text=text)
    elif align and len(raw) <= SMALL:
        return np.ndarray(layout.shape, layout.dtype, bytes(raw))  # which lie aligned
    else:
        array = np.ndarray(layout.shape, layout.dtype, raw)
        if not align or array.flags.aligned:
            return array  # read-only, as `raw` is
        array = array.copy()
    array.flags.writeable = False
    return array


def _strings(name: str, raw: memoryview, *, text: bool) -> list[str] | list[bytes]:
    items = strings.unpack(raw)
    if not text:
        return items
    try:
        return [item.decode() for item in items]
    except UnicodeDecodeError:
        raise invalid_input(name, "an element is not UTF-8") from None
