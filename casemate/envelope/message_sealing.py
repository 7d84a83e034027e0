"""A unit sealed into the message that carries it, without a copy on the way (SPEC 5.5, 9.3)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from casemate import limits
from casemate.envelope.chunks import seal_pieces, seal_scattered, sealed_length
from casemate.envelope.sealed_message import encode_sealed, sealed_front

if TYPE_CHECKING:
    from casemate.envelope.units import PaddedUnit


def seal_message(header: bytes, key: bytes, aad: bytes, unit: PaddedUnit) -> bytes:
    """Return the protobuf message of ``header`` and ``unit`` sealed under ``key``.

    gRPC takes nothing but ``bytes``. A long one is made in a `BytesIO`, which can be written to and
    then gives its memory away as it is: so each tensor is read once, and written once, encrypted.
    """
    if unit.length < limits.SEALED_IN_PLACE_MIN:
        return b"".join(encode_sealed(header, seal_pieces(key, aad, unit.chunks(), unit.length)))
    front = sealed_front(header, sealed_length(unit.length))
    message = io.BytesIO(front)
    message.seek(len(front) + sealed_length(unit.length) - 1)
    message.write(b"\0")
    with message.getbuffer() as room:
        seal_scattered(key, aad, unit.scattered(), room[len(front) :])
    return message.getvalue()
