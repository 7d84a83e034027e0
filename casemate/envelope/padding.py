"""Padding of units (SPEC 5.5): PADME buckets, so that a length tells little about the content."""

from __future__ import annotations

import functools

from casemate import limits


@functools.lru_cache(maxsize=1024)  # a service's messages have few lengths
def padme(length: int) -> int:
    """Return the smallest PADME bucket (PURBs, PoPETs 2019) that holds ``length`` >= 2 bytes.

    It leaks O(log log length) bits and adds at most 12 %.
    """
    exponent = length.bit_length() - 1
    mantissa_bits = exponent.bit_length()
    mask = (1 << (exponent - mantissa_bits)) - 1
    return (length + mask) & ~mask


def padded_length(length: int) -> int:
    """Return the length in bytes of a unit whose parts take ``length`` bytes (SPEC 5.5)."""
    return padme(max(limits.UNIT_MIN, length))


@functools.lru_cache(maxsize=1024)
def holds_answer(bucket: int, length: int) -> bool:
    """Tell whether answers of messages of ``length`` bytes take ``bucket`` bytes, at some floor."""
    return bucket == padme(bucket) and bucket >= padded_answer(length)


def padded_answer(length: int, floor: int = 0) -> int:
    """Return the length in bytes of an answer whose messages take ``length`` bytes (SPEC 5.5).

    ``floor`` is the model's answer bucket. The trailer has its room, whatever it says, so that
    neither status nor receipt shows in the length.
    """
    return padme(max(floor, length) + limits.TRAILER_ROOM)
