"""A split virtqueue as its device sees it (virtio 1.2, section 2.7), over shared guest memory.

The guest writes these structures, so nothing in them is taken for granted: whatever points outside
of the guest's memory, or in a circle, is a GuestError, and ends the device.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator, Sequence

_DESCRIPTOR: Final = struct.Struct("<QIHH")  # address, length, flags, next
_U16: Final = struct.Struct("<H")
_USED: Final = struct.Struct("<II")  # head, bytes written
_RING: Final = 4  # flags and index stand in front of both rings
_NEXT: Final = 1
_WRITE: Final = 2
_WRAP: Final = 0xFFFF
_CHAIN_BYTES_MAX: Final = 1 << 16


class GuestError(Exception):
    """The guest, or its hypervisor, described memory or a queue that cannot be."""


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of guest memory: where guest and hypervisor see it, and where it is mapped here."""

    guest: int
    size: int
    hypervisor: int
    offset: int
    mapped: mmap.mmap


@dataclass(frozen=True, slots=True)
class Place:
    """Some bytes of guest memory."""

    mapped: mmap.mmap
    start: int
    length: int

    def read(self, at: int, length: int) -> bytes:
        """Return ``length`` bytes from ``at`` on."""
        self._check(at, length)
        return self.mapped[self.start + at : self.start + at + length]

    def write(self, at: int, data: bytes) -> None:
        """Replace the bytes from ``at`` on."""
        self._check(at, len(data))
        self.mapped[self.start + at : self.start + at + len(data)] = data

    def _check(self, at: int, length: int) -> None:
        if at < 0 or at + length > self.length:
            raise GuestError("outside of its place")


class GuestMemory:
    """All memory of the guest."""

    def __init__(self, regions: Sequence[Region] = ()) -> None:
        self._regions = regions

    def close(self) -> None:
        """Unmap it."""
        for region in self._regions:
            region.mapped.close()

    def place(
        self, address: int, length: int, seen_by: Literal["guest", "hypervisor"] = "guest"
    ) -> Place:
        """Where ``length`` bytes lie, by an address of the guest's or the hypervisor's."""
        for region in self._regions:
            inside = address - (region.guest if seen_by == "guest" else region.hypervisor)
            if inside >= 0 and inside + length <= region.size:
                return Place(region.mapped, region.offset + inside, length)
        raise GuestError("outside of the guest's memory")


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain of descriptors: what the guest says in it, and where it waits for an answer."""

    head: int
    request: bytes
    room: tuple[Place, ...]


class Virtqueue:
    """One queue; ``size`` entries, a power of two, its three parts in guest memory."""

    def __init__(
        self, memory: GuestMemory, size: int, *, descriptors: int, available: int, used: int
    ) -> None:
        """Addresses are the hypervisor's, as vhost-user gives them."""
        if not 0 < size <= 1 << 15 or size & (size - 1):
            raise GuestError("no size of a queue")
        self._memory = memory
        self._size = size
        ring = _RING + 2 * size
        self._descriptors = memory.place(descriptors, _DESCRIPTOR.size * size, "hypervisor")
        self._available = memory.place(available, ring, "hypervisor")
        self._used = memory.place(used, _RING + _USED.size * size, "hypervisor")

    def take(self, seen: int) -> Iterator[Chain]:
        """Yield the chains that the guest has made available since index ``seen``."""
        (index,) = _U16.unpack(self._available.read(2, 2))
        if (index - seen) & _WRAP > self._size:
            raise GuestError("more available than the queue holds")
        while seen != index:
            place = _RING + 2 * (seen % self._size)
            (head,) = _U16.unpack(self._available.read(place, 2))
            yield self._chain(head)
            seen = (seen + 1) & _WRAP

    def _chain(self, head: int) -> Chain:
        request, room, number, length = b"", [], head, 0
        for _ in range(self._size):
            entry = self._descriptors.read(_DESCRIPTOR.size * number, _DESCRIPTOR.size)
            address, size, flags, following = _DESCRIPTOR.unpack(entry)
            length += size
            if length > _CHAIN_BYTES_MAX:
                raise GuestError("a chain of more bytes than any request")
            place = self._memory.place(address, size)
            if flags & _WRITE:
                room.append(place)
            else:
                request += place.read(0, size)
            if not flags & _NEXT:
                return Chain(head, request, tuple(room))
            number = following
        raise GuestError("a chain without an end")

    def give_back(self, chain: Chain, answer: bytes = b"") -> None:
        """Hand a chain back, with as much of ``answer`` as it has room for."""
        written = 0
        for place in chain.room:
            piece = answer[written : written + place.length]
            place.write(0, piece)
            written += len(piece)
        (index,) = _U16.unpack(self._used.read(2, 2))
        self._used.write(_RING + _USED.size * (index % self._size), _USED.pack(chain.head, written))
        self._used.write(2, _U16.pack((index + 1) & _WRAP))
