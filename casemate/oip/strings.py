"""Raw contents of BYTES tensors: each element after its length, u32 little-endian."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_LENGTH: Final = struct.Struct("<I")


def pack(elements: Iterable[object]) -> bytes:
    """Return the raw contents of ``elements``, text as UTF-8; raises TypeError for other types."""
    pieces: list[bytes] = []
    for element in elements:
        item = element.encode() if isinstance(element, str) else element
        if not isinstance(item, bytes):
            raise TypeError("neither text nor bytes")
        pieces += (_LENGTH.pack(len(item)), item)
    return b"".join(pieces)


def fit(raw: memoryview, count: int) -> bool:
    """Tell whether ``raw`` is exactly ``count`` elements; takes no memory."""
    at = 0
    for _ in range(count):
        if len(raw) - at < _LENGTH.size:
            return False
        at += _LENGTH.size + _LENGTH.unpack_from(raw, at)[0]
    return at == len(raw)


def unpack(raw: memoryview) -> list[bytes]:
    """Return the elements of raw contents that ``fit``."""
    items: list[bytes] = []
    at = 0
    while at < len(raw):
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size + length
        items.append(bytes(raw[at - length : at]))
    return items
