"""A reader for the one BER structure that KMS sends (SPEC 10.4), and for no other.

It knows single-byte tags, definite lengths of at most two octets and indefinite lengths of
constructed values. It never allocates from a declared length and never reads beyond its value.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SEQUENCE: Final = 0x30
SET: Final = 0x31
INTEGER: Final = 0x02
OCTETS: Final = 0x04
CONTEXT_0: Final = 0x80  # [0] IMPLICIT of a primitive
CONTEXT_0_CONSTRUCTED: Final = 0xA0
_CONSTRUCTED: Final = 0x20
_INDEFINITE: Final = 0x80
_LONG_1: Final = 0x81
_LONG_2: Final = 0x82
_END: Final = b"\x00\x00"


class BerError(ValueError):
    """The bytes are not the expected structure."""


class Reader:
    """Reads values in order; the caller states each tag it expects."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._end: int | None = len(data)  # of the innermost open value; None: indefinite
        self._bound = len(data)  # of the innermost definite value around the position

    def finish(self) -> None:
        """Raise BerError unless everything was read."""
        if self._at != len(self._data):
            raise BerError("trailing bytes")

    def tag(self) -> int:
        """Return the next tag without taking it."""
        if self._at >= self._bound:
            raise BerError("truncated")
        return self._data[self._at]

    @property
    def exhausted(self) -> bool:
        """Whether the innermost open value has no further content."""
        if self._end is None:
            return self._data[self._at : self._at + 2] == _END
        return self._at == self._end

    def primitive(self, tag: int) -> bytes:
        """Take a primitive value with ``tag`` and return its content."""
        length = self._head(tag)
        if length is None:
            raise BerError("primitive of indefinite length")
        return self._take(length)

    def raw(self, count: int) -> bytes:
        """Take ``count`` bytes: the rest of a value whose head was a literal."""
        return self._take(count)

    def literal(self, expected: bytes) -> None:
        """Take exactly these bytes: an encoding that has one form only."""
        if self._take(len(expected)) != expected:
            raise BerError("unexpected value")

    @contextmanager
    def constructed(self, tag: int) -> Iterator[None]:
        """Open a constructed value with ``tag``; the block must read all of its content."""
        outer = self._end, self._bound
        length = self._head(tag)
        self._end = None if length is None else self._at + length
        self._bound = self._bound if self._end is None else self._end
        yield
        if not self.exhausted:
            raise BerError("unread content")
        if self._end is None:
            self._take(len(_END))
        self._end, self._bound = outer

    def _take(self, count: int) -> bytes:
        if count > self._bound - self._at:
            raise BerError("truncated")
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece

    def _head(self, tag: int) -> int | None:
        """Take tag and length; None is an indefinite length. The content fits its surroundings."""
        if self._take(1)[0] != tag:
            raise BerError("unexpected tag")
        first = self._take(1)[0]
        if first == _INDEFINITE and tag & _CONSTRUCTED:
            return None
        if first in (_LONG_1, _LONG_2):
            length = int.from_bytes(self._take(first & 0x7F), "big")
        elif first < _INDEFINITE:
            length = first
        else:
            raise BerError("unsupported length")
        if length > self._bound - self._at:
            raise BerError("truncated")
        return length
