"""A vhost-user device with one queue: the messages of QEMU's docs/interop/vhost-user.rst.

QEMU is the front end: it connects, hands over the guest's memory as file descriptors, describes the
queue and rings its bell. Only what the device needs is offered, and every message is answered, so
that QEMU waits until it has taken effect.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
from array import array
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol

from casemate_devkit.vm.virtqueue import GuestError, GuestMemory, Region, Virtqueue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate_devkit.vm.virtqueue import Chain


class _Message(IntEnum):
    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18


_HEAD: Final = struct.Struct("=III")  # request, flags, size
_VERSION_REPLY: Final = 0x5  # version 1, and the bit that says reply
_NEED_REPLY: Final = 0x8
_U64: Final = struct.Struct("=Q")
_STATE: Final = struct.Struct("=II")  # index, number
_ADDRESSES: Final = struct.Struct("=IIQQQQ")  # index, flags, descriptors, used, available, log
_REGION: Final = struct.Struct("=QQQQ")  # guest address, size, hypervisor's address, offset
_REGIONS_AT: Final = 8
_REGIONS_MAX: Final = 8
_NO_DESCRIPTOR: Final = 0x100
_PAYLOAD_MAX: Final = 4096
_FEATURES: Final = 1 << 32 | 1 << 30  # VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES
_PROTOCOL: Final = 1 << 0 | 1 << 3  # MQ, REPLY_ACK; not CONFIG: the device has none
_ONE: Final = _U64.pack(1)


class Device(Protocol):
    """What a queue's chains mean."""

    def serve(self, queue: Virtqueue, chains: Sequence[Chain]) -> bool:
        """Take newly available chains; whether any was handed back to the guest."""
        ...


@dataclass
class _Ring:
    """What QEMU has said of the queue so far."""

    size: int = 0
    seen: int = 0
    enabled: bool = False
    kick: int | None = None
    call: int | None = None
    queue: Virtqueue | None = None


@dataclass
class Session:
    """One QEMU and its guest; ``run`` returns when they are gone, and raises GuestError."""

    channel: socket.socket
    device: Device
    _memory: GuestMemory = field(default_factory=GuestMemory)
    _ring: _Ring = field(default_factory=_Ring)

    def run(self) -> None:
        """Serve until the other side closes."""
        try:
            with contextlib.suppress(EOFError, ConnectionError):
                while True:
                    self._step()
        finally:
            self._memory.close()
            for descriptor in (self._ring.kick, self._ring.call):
                if descriptor is not None:
                    os.close(descriptor)

    def _step(self) -> None:
        kick = self._ring.kick
        sources = select.poll()  # select itself takes no descriptor above 1,023
        sources.register(self.channel, select.POLLIN)
        if kick is not None:
            sources.register(kick, select.POLLIN)
        ready = {descriptor for descriptor, _ in sources.poll()}
        if kick is not None and kick in ready:
            os.read(kick, _U64.size)
            self._process()
        if self.channel.fileno() in ready:
            self._receive()

    def _process(self) -> None:
        ring = self._ring
        if not (ring.enabled and ring.queue):
            return
        chains = list(ring.queue.take(ring.seen))
        ring.seen = (ring.seen + len(chains)) & 0xFFFF
        if self.device.serve(ring.queue, chains) and ring.call is not None:
            os.write(ring.call, _ONE)

    # -- messages ---------------------------------------------------------------------------------

    def _receive(self) -> None:
        head, descriptors = self._receive_head()
        number, flags, size = _HEAD.unpack(head)
        if size > _PAYLOAD_MAX:
            raise GuestError("a message longer than any")
        payload = self._exactly(size)
        try:
            message = _Message(number)
        except ValueError:
            raise GuestError(f"message {number} was never offered") from None
        answer = self._handlers()[message](payload, descriptors)
        if answer is not None:
            self._reply(number, answer)
        elif flags & _NEED_REPLY:
            self._reply(number, _U64.pack(0))

    def _handlers(self) -> dict[_Message, Callable[[bytes, list[int]], bytes | None]]:
        return {
            _Message.GET_FEATURES: lambda *_: _U64.pack(_FEATURES),
            _Message.SET_FEATURES: lambda *_: None,
            _Message.SET_OWNER: lambda *_: None,
            _Message.GET_PROTOCOL_FEATURES: lambda *_: _U64.pack(_PROTOCOL),
            _Message.SET_PROTOCOL_FEATURES: lambda *_: None,
            _Message.GET_QUEUE_NUM: lambda *_: _U64.pack(1),
            _Message.SET_MEM_TABLE: self._set_memory,
            _Message.SET_VRING_NUM: self._set_size,
            _Message.SET_VRING_ADDR: self._set_addresses,
            _Message.SET_VRING_BASE: self._set_base,
            _Message.GET_VRING_BASE: self._get_base,
            _Message.SET_VRING_KICK: self._set_kick,
            _Message.SET_VRING_CALL: self._set_call,
            _Message.SET_VRING_ERR: self._drop,
            _Message.SET_VRING_ENABLE: self._set_enabled,
        }

    def _receive_head(self) -> tuple[bytes, list[int]]:
        room = socket.CMSG_SPACE(_REGIONS_MAX * array("i").itemsize)
        head, ancillary, _, _ = self.channel.recvmsg(_HEAD.size, room)
        descriptors = array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if not head:
            raise EOFError
        return head + self._exactly(_HEAD.size - len(head)), list(descriptors)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.channel.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _reply(self, number: int, payload: bytes) -> None:
        self.channel.sendall(_HEAD.pack(number, _VERSION_REPLY, len(payload)) + payload)

    def _set_memory(self, payload: bytes, descriptors: list[int]) -> None:
        (count,) = struct.unpack_from("=I", payload)
        if count != len(descriptors):
            raise GuestError("as many regions as descriptors")
        regions = []
        for number, descriptor in enumerate(descriptors):
            values = _REGION.unpack_from(payload, _REGIONS_AT + number * _REGION.size)
            guest, size, hypervisor, offset = values
            mapped = mmap.mmap(descriptor, size + offset)
            os.close(descriptor)
            regions.append(Region(guest, size, hypervisor, offset, mapped))
        self._memory.close()
        self._memory, self._ring.queue = GuestMemory(regions), None

    def _set_size(self, payload: bytes, _: list[int]) -> None:
        self._ring.size = _STATE.unpack(payload)[1]

    def _set_addresses(self, payload: bytes, _: list[int]) -> None:
        _, _, descriptors, used, available, _ = _ADDRESSES.unpack(payload)
        self._ring.queue = Virtqueue(
            self._memory,
            self._ring.size,
            descriptors=descriptors,
            available=available,
            used=used,
        )

    def _set_base(self, payload: bytes, _: list[int]) -> None:
        self._ring.seen = _STATE.unpack(payload)[1]

    def _get_base(self, payload: bytes, _: list[int]) -> bytes:
        self._ring.enabled = False
        return _STATE.pack(_STATE.unpack(payload)[0], self._ring.seen)

    def _set_kick(self, payload: bytes, descriptors: list[int]) -> None:
        self._ring.kick = _replaced(self._ring.kick, payload, descriptors)

    def _set_call(self, payload: bytes, descriptors: list[int]) -> None:
        self._ring.call = _replaced(self._ring.call, payload, descriptors)
        if self._ring.call is not None and self._ring.enabled:
            os.write(self._ring.call, _ONE)  # what was handed back meanwhile must not be missed

    def _drop(self, payload: bytes, descriptors: list[int]) -> None:
        _replaced(None, payload, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def _set_enabled(self, payload: bytes, _: list[int]) -> None:
        self._ring.enabled = bool(_STATE.unpack(payload)[1])
        self._process()


def _replaced(old: int | None, payload: bytes, descriptors: list[int]) -> int | None:
    """The event descriptor of a message, in place of ``old``."""
    if old is not None:
        os.close(old)
    (value,) = _U64.unpack(payload)
    expected = 0 if value & _NO_DESCRIPTOR else 1
    if len(descriptors) != expected:
        raise GuestError("an event without its descriptor")
    return descriptors[0] if descriptors else None
