"""A strict, zero-copy reader of the protobuf wire format, for messages whose fields are known.

protobuf's own parser copies every field, keeps the last of duplicates and takes any varint; this
reader yields views and leaves nothing to interpretation (SPEC 5.6, 9.3).
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT: Final = 0
BYTES: Final = 2
_VARINT_BYTES_MAX: Final = 10  # 64 bits, seven in a byte
_CONTINUES: Final = 0x80
_THREE: Final = struct.Struct("BBB")  # a tag, and a length of one or two bytes
_LAST_BYTE: Final = [bytes([value]) for value in range(_CONTINUES)]
_BYTE: Final = [bytes([value | _CONTINUES]) for value in range(_CONTINUES)]


class WireError(ValueError):
    """The bytes are no message in the strict wire format; callers translate it."""


def encode_varint(value: int) -> bytes:
    """Return the shortest varint of an unsigned ``value``."""
    if value < _CONTINUES:
        return _LAST_BYTE[value]
    return _BYTE[value & 0x7F] + encode_varint(value >> 7)


@functools.lru_cache(maxsize=1024)  # a service's messages have few lengths
def bytes_head(number: int, length: int) -> bytes:
    """Return what precedes the content of a bytes, text or message field."""
    return encode_varint(number << 3 | BYTES) + encode_varint(length)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    try:  # nearly all have one or two bytes
        if (low := data[at]) < _CONTINUES:
            return low, at + 1
        if 0 < (high := data[at + 1]) < _CONTINUES:
            return low & 0x7F | high << 7, at + 2
    except IndexError:
        raise WireError("varint is cut") from None
    value = 0
    for index, byte in enumerate(data[at : at + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << 7 * index
        if byte < _CONTINUES:
            if byte == 0 and index:
                raise WireError("varint is not the shortest")
            return value, at + index + 1
    raise WireError("varint is cut or too long")


def bytes_field(data: memoryview, at: int, number: int) -> tuple[memoryview, int]:
    """Return the content of the bytes field ``number`` < 16 that begins ``at``, and where it ends.

    Raises WireError if another field begins there, or none, or it passes the end.
    """
    try:
        tag, low, high = _THREE.unpack_from(data, at)
    except struct.error:  # less than three are left: as if what is cut went on
        tag, low, high = bytes(data[at:]).ljust(3, b"\xff")
    if tag != number << 3 | BYTES:
        raise WireError("another field than the one that is due")
    if low < _CONTINUES:
        length, begin = low, at + 2
    elif 0 < high < _CONTINUES:
        length, begin = low & 0x7F | high << 7, at + 3
    else:
        length, begin = _varint(data, at + 1)
    end = begin + length
    if end > len(data):
        raise WireError("field passes the end")
    return data[begin:end], end


def read_fields(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield (field number, wire type, content) of a message, contents as views.

    The content of a varint field is its varint. Raises WireError for every other wire type, for
    a varint that is not the shortest, and for a field that passes the end.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == BYTES:
            length, at = _varint(data, at)
            end = at + length
        elif kind == VARINT:
            _, end = _varint(data, at)
        else:
            raise WireError("wire type that no field has")
        if number == 0 or end > len(data):
            raise WireError("field passes the end, or has no number")
        yield number, kind, data[at:end]
        at = end


def split_trailing(
    data: memoryview, number: int, most: int
) -> tuple[memoryview, list[memoryview]] | None:
    """Return what precedes the bytes fields of ``number`` that end a message, and their contents.

    None if they are not all at its end, or it has more than ``most`` fields: then another reader
    has to say what it is. What precedes them was not looked at but for its lengths. Raises
    WireError.
    """
    wanted = number << 3 | BYTES
    contents: list[memoryview] = []
    begin = at = fields = 0
    while at < len(data):
        tag, start = _varint(data, at)
        length, start = _varint(data, start)
        fields += 1
        if tag == wanted:
            begin = begin if contents else at
            contents.append(data[start : start + length])
        elif contents or tag & 7 != BYTES:
            return None
        at = start + length
        if at > len(data) or fields > most:
            return None
    return (data[:begin], contents) if contents else None


def locate(data: memoryview, number: int, at_least: int) -> int:
    """Return where the first content of ``number`` with ``at_least`` bytes begins, else 0.

    ``data`` may be the beginning of a message only. Whether it is a good one is for others to say.
    """
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            if tag & 7 != BYTES:
                break
            length, at = _varint(data, at)
            if tag >> 3 == number and length >= at_least:
                return at
            at += length
    except WireError:
        pass
    return 0
