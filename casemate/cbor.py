"""Strict CBOR: the deterministic subset of SPEC 1.6, and the NSM's dialect of SPEC 3.7.

Accepts unsigned integers, byte and text strings, arrays, maps, true, false and null, and refuses
everything else. It never allocates from a declared length before checking it against the input.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Any

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Mapping

# A recursive type alias would force casts on every caller; readers check with `fields`.
Value = Any


class CborError(ValueError):
    """The bytes are not the CBOR that was asked for; callers translate it to their own code."""


_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_INDEFINITE = 31
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}  # bytes of an argument beside its head
_BREAK = 0xFF
_SIMPLES: dict[int, bool | None] = {20: False, 21: True, 22: None}


def encode(value: Value) -> bytes:
    """Encode ``value`` deterministically (RFC 8949 4.2.1); raises TypeError for foreign types."""
    out = bytearray()
    _encode(value, out)
    return bytes(out)


def encode_uint(value: int) -> bytes:
    """Encode an integer of at least 0; raises TypeError above 64 bits."""
    return _head(_UINT, value)


def _head(major: int, argument: int) -> bytes:
    top = major << 5
    if argument < 24:  # noqa: PLR2004 - RFC 8949 section 3
        return bytes([top | argument])
    for info, form, bound in ((24, ">BB", 8), (25, ">BH", 16), (26, ">BI", 32), (27, ">BQ", 64)):
        if argument < 1 << bound:
            return struct.pack(form, top | info, argument)
    msg = "integer above 64 bits"
    raise TypeError(msg)


def _encode(value: Value, out: bytearray) -> None:
    if value is None or isinstance(value, bool):
        out += {False: b"\xf4", True: b"\xf5", None: b"\xf6"}[value]
    elif isinstance(value, int) and value >= 0:
        out += _head(_UINT, value)
    elif isinstance(value, bytes):
        out += _head(_BYTES, len(value)) + value
    elif isinstance(value, str):
        text = value.encode()
        out += _head(_TEXT, len(text)) + text
    elif isinstance(value, (list, tuple)):
        out += _head(_ARRAY, len(value))
        for item in value:
            _encode(item, out)
    elif isinstance(value, dict):
        out += _head(_MAP, len(value))
        for encoded, key in _sorted(tuple(value)):
            out += encoded
            _encode(value[key], out)
    else:
        msg = f"cannot encode {type(value).__name__}"
        raise TypeError(msg)


@functools.lru_cache(maxsize=128)
def _sorted(keys: tuple[Value, ...]) -> list[tuple[bytes, Value]]:
    """Return the keys in the order of their encodings; those of most maps are always the same."""
    return sorted((encode(key), key) for key in keys)


def decode(data: bytes) -> Value:
    """Decode one deterministic item that fills ``data`` (SPEC 1.6); raises CborError."""
    return _Reader(data, nsm=False).whole()


def read_uint(data: bytes, at: int) -> tuple[int, int]:
    """Return the integer that begins ``at``, and where it ends; raises CborError."""
    if at >= len(data):
        raise CborError("truncated")
    if data[at] >> 5 != _UINT:
        raise CborError("not an unsigned integer")
    return _argument(data, at + 1, data[at])


def decode_nsm(data: bytes) -> Value:
    """Decode the NSM's dialect: maps may be unsorted or of indefinite length (SPEC 3.7)."""
    return _Reader(data, nsm=True).whole()


def decode_map(data: bytes, keys: Mapping[str, type | tuple[type, ...]]) -> dict[str, Value]:
    """Decode a map with exactly ``keys``, each of the given type; raises CborError."""
    return fields(decode(data), keys)


def fields(value: Value, keys: Mapping[str, type | tuple[type, ...]]) -> dict[str, Value]:
    """Return ``value`` if it is a map with exactly ``keys`` of the given types.

    ``bool`` never passes for ``int``. Raises CborError naming the key.
    """
    if not isinstance(value, dict):
        msg = "not a map"
        raise CborError(msg)
    if value.keys() != keys.keys():
        wrong = sorted(ascii(key)[:64] for key in value.keys() ^ keys.keys())
        msg = f"missing or unknown keys: {', '.join(wrong)[:200]}"
        raise CborError(msg)
    for key, kinds in keys.items():
        item = value[key]
        accepted = kinds if isinstance(kinds, tuple) else (kinds,)
        if type(item) not in accepted:
            msg = f"wrong type for {key}"
            raise CborError(msg)
    return value


def _argument(data: bytes, at: int, info: int) -> tuple[int, int]:
    """Return the argument of a head that ends ``at``, and where it ends; raises CborError."""
    if info < 24:  # noqa: PLR2004 - RFC 8949 section 3
        return info, at
    width = _WIDTHS.get(info)
    if width is None:
        raise CborError("reserved or indefinite length")
    end = at + width
    if end > len(data):
        raise CborError("truncated")
    value = int.from_bytes(data[at:end], "big")
    if value < (24 if width == 1 else 1 << (4 * width)):
        raise CborError("head is not the shortest")
    return value, end


class _Reader:
    def __init__(self, data: bytes, *, nsm: bool) -> None:
        self._data = data
        self._at = 0
        self._nsm = nsm

    def whole(self) -> Value:
        value = self._item(0)
        if self._at != len(self._data):
            raise CborError("trailing bytes")
        return value

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise CborError("truncated")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def _argument(self, info: int) -> int:
        value, self._at = _argument(self._data, self._at, info)
        return value

    def _item(self, depth: int) -> Value:
        if depth > limits.CBOR_DEPTH:
            raise CborError("nested too deeply")
        first = self._take(1)[0]
        major, info = first >> 5, first & 31
        if major == _SIMPLE:
            if info not in _SIMPLES:
                raise CborError("simple value or float")
            return _SIMPLES[info]
        if major == _MAP:
            return self._map(info, depth)
        argument = self._argument(info)
        if major == _UINT:
            return argument
        if major == _BYTES:
            return bytes(self._take(argument))
        if major == _TEXT:
            try:
                return self._take(argument).decode()
            except UnicodeDecodeError:
                raise CborError("text is not UTF-8") from None
        if major == _ARRAY:
            self._bound(argument)
            return [self._item(depth + 1) for _ in range(argument)]
        raise CborError("tag" if major == _TAG else "negative integer")

    def _bound(self, items: int) -> None:
        if items > limits.CBOR_ITEMS or items > len(self._data) - self._at:
            raise CborError("too many items")

    def _map(self, info: int, depth: int) -> dict[Value, Value]:
        indefinite = self._nsm and info == _INDEFINITE
        count = limits.CBOR_ITEMS if indefinite else self._argument(info)
        if not indefinite:
            self._bound(count)
        result: dict[Value, Value] = {}
        previous = b""
        for _ in range(count):
            if indefinite and self._data[self._at : self._at + 1] == bytes([_BREAK]):
                break
            start = self._at
            key = self._item(depth + 1)
            if type(key) not in (int, str):
                raise CborError("map key is neither integer nor text")
            encoded = self._data[start : self._at]
            if key in result:
                raise CborError("duplicate key")
            if not self._nsm and previous and encoded <= previous:
                raise CborError("map keys are not sorted")
            previous = encoded
            result[key] = self._item(depth + 1)
        if indefinite and self._take(1)[0] != _BREAK:
            raise CborError("too many items")
        return result
