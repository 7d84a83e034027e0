"""The few fixed messages between enclave, spawner and worker; one packet each, little-endian."""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate.wire import Buffer

# Enclave to spawner: what, a worker's number, what it needs (bits), bytes that it may allocate;
# START with its control.
ORDER: Final = struct.Struct("<IIIQ")
START, KILL = range(2)
NEEDS_CODE, NEEDS_GPU = 1, 2
# Spawner to enclave: a worker's number, its exit status, or less than zero: the signal.
ENDED: Final = struct.Struct("<Ii")

# Enclave to worker, on its control: what, and a number: OPEN comes with a line and the line's
# number, SPLIT with a line's, CANCEL with a run's; LOAD comes with contents.
COMMAND: Final = struct.Struct("<IQ")
LOAD, OPEN, CANCEL, SPLIT = range(4)
# Worker to enclave, once: whether it is loaded, else the number of a refusal, and its place; when
# it is loaded, in that place the share of its nodes on accelerators, in percent.
LOADED: Final = struct.Struct("<III")

# Enclave to worker, on a line: what, the description's length, the deadline in seconds of the
# monotonic clock, the run's number, the size of memory that comes along or 0, and where in it the
# tensors begin. A packet has one of them, or any number of RUN_TOGETHER, each with its description
# and its tensors, and padded between them so that these begin where a tensor may.
QUESTION: Final = struct.Struct("<IIdQQQ")
RUN_INLINE, RUN_SHARED, RUN_LENT, ROOM, RUN_TOGETHER = range(5)
# Worker to enclave, on a line: how it went, the description's length, the run's number, bytes,
# nanoseconds that the run took. To RUN_TOGETHER any number in a packet, laid out as its questions:
# DONE_INLINE, FAILED, or ALONE for what is larger.
ANSWER: Final = struct.Struct("<IIQQQ")
DONE_INLINE, DONE_SHARED, NEEDS_ROOM, ALONE, FAILED = range(5)

_DESCRIPTOR: Final = array.array("i").itemsize
_ROOM: Final = socket.CMSG_SPACE(_DESCRIPTOR)


def send(
    channel: socket.socket,
    pieces: Iterable[Buffer],
    descriptor: int | None = None,
    *,
    wait: bool = False,
) -> None:
    """Send one packet, with a descriptor if given; raises OSError.

    Without ``wait`` that of a full connection: one that reads what it is sent has room.
    """
    flags = 0 if wait else socket.MSG_DONTWAIT
    if descriptor is None:
        channel.sendmsg(pieces, (), flags)
        return
    rights = array.array("i", [descriptor])
    channel.sendmsg(pieces, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], flags)


def await_room(channel: socket.socket, patience_s: float) -> None:
    """Wait until a packet will not block for long; raises OSError, if nobody reads TimeoutError."""
    room = select.poll()
    try:
        room.register(channel, select.POLLOUT)
    except ValueError:
        raise BrokenPipeError("closed on this side") from None
    if not room.poll(patience_s * 1000):
        raise TimeoutError("nobody reads")


def receive(channel: socket.socket, memory: Buffer) -> tuple[int, int | None]:
    """Receive one packet: its length, 0 at the end, and the descriptor that came along."""
    size, ancillary, _, _ = channel.recvmsg_into([memory], _ROOM)
    if not ancillary:
        return size, None
    descriptors = [_only(data) for _, _, data in ancillary]
    for extra in descriptors[1:]:
        os.close(extra)
    return size, descriptors[0]


def _only(data: bytes) -> int:
    (descriptor,) = array.array("i", data[:_DESCRIPTOR])
    return descriptor


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a connection that keeps packets apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def packet_memory() -> memoryview:
    """Return memory for one packet on a line, aligned as tensors like it."""
    return memoryview(mmap.mmap(-1, limits.WORKER_MESSAGE_MAX))
