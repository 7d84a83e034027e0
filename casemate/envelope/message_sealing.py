"""A unit sealed into the message that carries it, without a copy on the way (SPEC 5.5, 9.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casemate import limits
from casemate.envelope.chunks import seal_alone, seal_scattered, sealed_length
from casemate.envelope.sealed_message import encode_sealed, sealed_front

if TYPE_CHECKING:
    from casemate.envelope.units import PaddedUnit
    from casemate.wire import Buffer


def seal_message(header: bytes, key: bytes, aad: bytes, unit: PaddedUnit) -> Buffer:
    """Return the protobuf message of ``header`` and ``unit`` sealed under ``key``, read-only.

    A long one is no ``bytes``: each tensor is read once, and written once, encrypted, into memory
    that was not cleared before.
    """
    if unit.length < limits.SEALED_IN_PLACE_MIN:
        return b"".join(encode_sealed(header, seal_alone(key, aad, unit.whole())))
    front = sealed_front(header, sealed_length(unit.length))
    room = np.empty(len(front) + sealed_length(unit.length), np.uint8).data
    room[: len(front)] = front
    seal_scattered(key, aad, unit.scattered(), room[len(front) :])
    return room.toreadonly()
