"""The module as a virtio device, driven by a front end that plays QEMU and the guest's driver."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from array import array
from typing import TYPE_CHECKING

import pytest

from casemate import cbor
from casemate_devkit.nsm import SimulatedNsm
from casemate_devkit.pki import NitroPki
from casemate_devkit.vm.nsm_device import NsmBackend
from casemate_devkit.vm.virtqueue import GuestError, GuestMemory, Region, Virtqueue
from casemate_enclave.nsm import Nsm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casemate_devkit.vm.virtqueue import Chain

SIZE = 8
MEMORY = 1 << 16
GUEST, HYPERVISOR = 0x10_0000, 0x7F00_0000_0000
DESCRIPTORS, AVAILABLE, USED = 0, 0x400, 0x800
BUFFERS = 0x1000
NEXT, WRITE = 1, 2


class Guest:
    """Guest memory with one queue in it, written as Linux's driver writes it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("guest")
        os.truncate(self.descriptor, MEMORY)
        self.memory = mmap.mmap(self.descriptor, MEMORY)
        self.made = 0

    def close(self) -> None:
        self.memory.close()
        os.close(self.descriptor)

    def put(self, at: int, form: str, *values: int) -> None:
        struct.pack_into(form, self.memory, at, *values)

    def describe(self, number: int, address: int, length: int, flags: int, after: int = 0) -> None:
        self.put(DESCRIPTORS + 16 * number, "<QIHH", address, length, flags, after)

    def offer(self, head: int) -> None:
        self.put(AVAILABLE + 4 + 2 * (self.made % SIZE), "<H", head)
        self.made += 1
        self.put(AVAILABLE + 2, "<H", self.made & 0xFFFF)

    def used(self) -> list[tuple[int, int]]:
        (count,) = struct.unpack_from("<H", self.memory, USED + 2)
        entries = range(max(0, count - SIZE), count)
        return [struct.unpack_from("<II", self.memory, USED + 4 + 8 * (n % SIZE)) for n in entries]

    def queue(self) -> Virtqueue:
        region = Region(GUEST, MEMORY, HYPERVISOR, 0, self.memory)
        return Virtqueue(GuestMemory([region]), SIZE, **places())


def places() -> dict[str, int]:
    starts = {"descriptors": DESCRIPTORS, "available": AVAILABLE, "used": USED}
    return {name: HYPERVISOR + start for name, start in starts.items()}


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()


# The queue


def taken(guest: Guest, seen: int = 0) -> list[Chain]:
    return list(guest.queue().take(seen))


def test_a_chain_holds_what_the_guest_says_and_where_it_waits(guest: Guest) -> None:
    guest.memory[BUFFERS : BUFFERS + 5] = b"hello"
    guest.describe(3, GUEST + BUFFERS, 5, NEXT, 1)
    guest.describe(1, GUEST + BUFFERS + 100, 4, WRITE)
    guest.offer(3)
    (chain,) = taken(guest)
    assert chain.request == b"hello"
    guest.queue().give_back(chain, b"answer")
    assert bytes(guest.memory[BUFFERS + 100 : BUFFERS + 108]) == b"answ" + bytes(4)
    assert guest.used() == [(3, 4)]


def test_indices_wrap(guest: Guest) -> None:
    guest.describe(0, GUEST + BUFFERS, 1, 0)
    for _ in range(0xFFFE):
        guest.made += 1
    guest.offer(0)
    guest.offer(0)
    guest.offer(0)
    assert len(taken(guest, 0xFFFE)) == 3


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ((GUEST - 1, 4, 0, 0), "outside of the guest's memory"),
        ((GUEST + MEMORY - 2, 4, 0, 0), "outside of the guest's memory"),
        ((1 << 63, 4, 0, 0), "outside of the guest's memory"),
        ((GUEST, 0xFFFFFFFF, 0, 0), "more bytes than any request"),
        ((GUEST, 4, NEXT, 0), "without an end"),
        ((GUEST, 4, NEXT, SIZE), "outside of its place"),
    ],
)
def test_what_the_guest_writes_is_not_believed(
    guest: Guest, entry: tuple[int, int, int, int], text: str
) -> None:
    guest.describe(0, *entry)
    guest.offer(0)
    with pytest.raises(GuestError, match=text):
        taken(guest)


def test_heads_counts_and_sizes_that_cannot_be(guest: Guest) -> None:
    guest.offer(SIZE)
    with pytest.raises(GuestError, match="outside of its place"):
        taken(guest)
    guest.put(AVAILABLE + 2, "<H", SIZE + 1)
    with pytest.raises(GuestError, match="more available"):
        taken(guest)
    region = Region(GUEST, MEMORY, HYPERVISOR, 0, guest.memory)
    for size in (0, 3, 1 << 16):
        with pytest.raises(GuestError, match="no size"):
            Virtqueue(GuestMemory([region]), size, **places())


# The device behind vhost-user


class FrontEnd:
    """QEMU's side of vhost-user, and a transport of the enclave's own client over it."""

    def __init__(self, path: Path, guest: Guest, *, together: bool) -> None:
        self.guest, self.together = guest, together
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.channel.settimeout(60)
        self.channel.connect(str(path))
        self.kick, self.call = os.eventfd(0), os.eventfd(0)

    def send(self, number: int, payload: bytes = b"", *descriptors: int, flags: int = 1) -> None:
        head = struct.pack("=III", number, flags, len(payload))
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
        self.channel.sendmsg([head + payload], passed if descriptors else [])

    def ask(self, number: int, payload: bytes = b"", *descriptors: int, reply: int = 8) -> int:
        """Send and read the number that is the answer; ``reply`` 8 asks for an acknowledgement."""
        self.send(number, payload, *descriptors, flags=1 | reply)
        answer = self.channel.recv(20, socket.MSG_WAITALL)
        assert struct.unpack("=III", answer[:12]) == (number, 5, 8)
        return int.from_bytes(answer[12:], "little")

    def set_up(self) -> None:
        assert self.ask(1) & 1 << 32, "VIRTIO_F_VERSION_1"
        assert self.ask(15) == 0b1001, "MQ and REPLY_ACK, not CONFIG"
        assert self.ask(17) == 1
        table = struct.pack("=II", 1, 0) + struct.pack("=QQQQ", GUEST, MEMORY, HYPERVISOR, 0)
        assert self.ask(5, table, self.guest.descriptor) == 0
        assert self.ask(8, struct.pack("=II", 0, SIZE)) == 0
        assert self.ask(10, struct.pack("=II", 0, 0)) == 0
        where = struct.pack(
            "=IIQQQQ", 0, 0, HYPERVISOR + DESCRIPTORS, HYPERVISOR + USED, HYPERVISOR + AVAILABLE, 0
        )
        assert self.ask(9, where) == 0
        assert self.ask(12, bytes(8), self.kick) == 0
        assert self.ask(13, bytes(8), self.call) == 0
        assert self.ask(18, struct.pack("=II", 0, 1)) == 0

    def __call__(self, request: bytes) -> bytes:
        guest, room = self.guest, BUFFERS + 0x4000
        guest.memory[BUFFERS : BUFFERS + len(request)] = request
        guest.describe(0, GUEST + BUFFERS, len(request), NEXT if self.together else 0, 1)
        guest.describe(1, GUEST + room, 0x3000, WRITE)
        before = len(guest.used())
        guest.offer(0)
        if not self.together:  # as Linux's driver does
            guest.offer(1)
        os.eventfd_write(self.kick, 1)
        wanted = before + (1 if self.together else 2)
        while len(guest.used()) < min(wanted, SIZE):
            os.eventfd_read(self.call)
        return bytes(guest.memory[room : room + guest.used()[-1][1]])

    def close(self) -> None:
        self.channel.close()
        os.close(self.kick)
        os.close(self.call)


@pytest.fixture
def nsm() -> SimulatedNsm:
    return SimulatedNsm(NitroPki.create(), {0: b"\x0a" * 48})


@pytest.mark.parametrize("together", [False, True], ids=["two chains", "one chain"])
def test_the_enclaves_client_speaks_to_the_module_through_the_device(
    nsm: SimulatedNsm, guest: Guest, short_path: Path, together: bool
) -> None:
    with NsmBackend(nsm, short_path / "nsm.sock") as backend:
        front = FrontEnd(short_path / "nsm.sock", guest, together=together)
        front.set_up()
        client = Nsm(front)
        assert client.describe_pcr(0) == (True, b"\x0a" * 48)
        assert client.random() != client.random()
        document = client.attest(public_key=None, user_data=b"u", nonce=b"n" * 16)
        assert cbor.decode(document)[3]
        front.close()
        backend._thread.join(60)
        assert not backend.failed


@pytest.mark.parametrize(
    "spoil",
    [
        lambda front: front.send(24),  # configuration space: never offered
        lambda front: front.send(5, struct.pack("=II", 1, 0) + bytes(32)),  # a region, no memory
        lambda front: front.send(9, bytes(40)),  # before there is any memory
        lambda front: front.send(12, bytes(8)),  # an event without its descriptor
        lambda front: front.send(8, b"x"),
        lambda front: front.channel.sendall(struct.pack("=III", 1, 1, 1 << 30)),
    ],
    ids=["not offered", "no descriptor", "no memory", "no event", "too short", "too long"],
)
def test_a_front_end_that_breaks_the_rules_ends_the_device(
    nsm: SimulatedNsm, guest: Guest, short_path: Path, spoil: Callable[[FrontEnd], object]
) -> None:
    with NsmBackend(nsm, short_path / "nsm.sock") as backend:
        front = FrontEnd(short_path / "nsm.sock", guest, together=False)
        spoil(front)
        assert front.channel.recv(1) == b""
        backend._thread.join(60)
        assert backend.failed
        front.close()
