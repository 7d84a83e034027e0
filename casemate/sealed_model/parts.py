"""Parts of contents and their digests: each is hashed by itself, on any thread (SPEC 8.1, 8.4)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from casemate import limits, wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate.wire import Buffer

_LENGTH_BYTES = 8


def part_digest(part: Buffer) -> bytes:
    """Return the SHA-256 of one part, 32 bytes; other threads run meanwhile."""
    return hashlib.sha256(part).digest()


def content_digest(length: int, parts: Iterable[bytes]) -> bytes:
    """Return the digest, 48 bytes, of a content of ``length`` bytes, from its parts' digests."""
    return wire.digest(wire.label("content"), length.to_bytes(_LENGTH_BYTES, "big"), *parts)


def digest_of(content: Buffer) -> bytes:
    """Return the digest of a content that lies in memory whole."""
    with memoryview(content) as view:
        starts = range(0, len(view), limits.CHUNK)
        parts = [part_digest(view[start : start + limits.CHUNK]) for start in starts]
        return content_digest(len(view), parts)
