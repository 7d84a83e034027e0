"""Damage that is certain: a byte set to a constant may have been that constant already."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.wire import Buffer


def flip(data: Buffer, position: int, bit: int = 0) -> bytes:
    """Return ``data`` with one bit changed."""
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)
