"""Frames between host and enclave (SPEC 9.2, 9.3)."""

from __future__ import annotations

import struct
import time
from enum import IntEnum
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from casemate import cbor, limits
from casemate.errors import Code, FrameError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from casemate.wire import Buffer

_HEAD = struct.Struct(">IBI")
_LENGTH = struct.Struct(">I")
HEAD_BYTES = _HEAD.size
COUNTED = 5  # bytes of the head that the length counts: type and budget
_SCRATCH = 64 * limits.KIB
_FIRST = limits.MODEL_DATA_MAX  # most frames fit; longer ones grow by doubling
ANSWER = 0x80
ERROR = 0xFF


class FrameType(IntEnum):
    """Types of frames sent by the host (SPEC 9.3)."""

    CONFIGURE = 1
    CREDENTIALS = 2
    REQUEST = 3
    STREAM = 4
    EVIDENCE = 5
    LOAD = 6
    MODEL_DATA = 7
    HEALTH = 8
    COUNTERS = 9
    UNLOAD = 10
    DRAIN = 11
    REPLACE = 12
    MODELS = 13
    CANCEL = 14
    NUMBERED = 32


class OversizedFrameError(FrameError):
    """A frame above the receiver's own limit; it was read and dropped, so another may follow."""


class Frame(NamedTuple):
    """One received frame; ``budget`` in milliseconds."""

    type: int
    budget: int
    payload: memoryview


def encode_head(kind: int, size: int, budget: int = 0) -> bytes:
    """Return what comes before a payload of ``size`` bytes."""
    return _HEAD.pack(COUNTED + size, kind, budget)


class Arriving:
    """Frames of one connection as their bytes arrive, whole or in pieces; each begins with a head.

    Bytes are kept as they came while frames arrive whole; one that comes in pieces is put together
    in a bytearray, which grows in place, however many these are.
    """

    def __init__(self, head_bytes: int) -> None:
        """``head_bytes``: of each frame, its length first."""
        self._head_bytes = head_bytes
        self._data: bytes | bytearray = b""
        self._at = 0

    def add(self, data: bytes) -> None:
        """Take what has arrived."""
        if self._at == len(self._data):
            self._data, self._at = data, 0
            return
        if not isinstance(self._data, bytearray):
            self._data = bytearray(memoryview(self._data)[self._at :])
        elif self._at:
            del self._data[: self._at]
        self._at = 0
        self._data += data

    @property
    def begun(self) -> bool:
        """Whether there is something that was not taken."""
        return self._at < len(self._data)

    @property
    def missing(self) -> int:
        """Bytes that the frame in hand still lacks; 0 while its head does."""
        data, at = self._data, self._at
        if len(data) - at < self._head_bytes:
            return 0
        (length,) = _LENGTH.unpack_from(data, at)
        return max(0, at + _LENGTH.size + int(length) - len(data))


def encode_frame(kind: int, payload: Buffer, budget: int = 0) -> bytes:
    """Return one frame as a whole; for short ones."""
    return encode_head(kind, len(payload), budget) + payload


def send_frame(
    channel: socket.socket, kind: int, payload: Buffer | tuple[Buffer, ...], budget: int = 0
) -> None:
    """Send one frame, gathering ``payload`` pieces without joining them."""
    pieces = payload if isinstance(payload, tuple) else (payload,)
    length = COUNTED + sum(len(piece) for piece in pieces)
    if length > limits.FRAME_MAX:
        raise FrameError(Code.TOO_LARGE, f"frame of {length} bytes, limit {limits.FRAME_MAX}")
    buffers: list[Buffer] = [_HEAD.pack(length, kind, budget), *pieces]
    while buffers:
        buffers = unsent(buffers, channel.sendmsg(buffers))


def send_file(
    channel: socket.socket, kind: int, part: tuple[BinaryIO, int, int], budget: int = 0
) -> None:
    """Send part of a file, from a place on so many bytes, as one frame; nothing is copied here.

    Raises FrameError(MODEL_MALFORMED) if the file is shorter than that: the frame has no end then.
    """
    file, start, length = part
    channel.sendall(_HEAD.pack(COUNTED + length, kind, budget))
    if channel.sendfile(file, start, length) != length:
        raise FrameError(Code.MODEL_MALFORMED, "the file became shorter while it was sent")


def unsent(buffers: list[Buffer], sent: int) -> list[Buffer]:
    """Return what is left of ``buffers`` after ``sent`` of their bytes, as views."""
    for index, piece in enumerate(buffers):
        if sent < len(piece):
            return [memoryview(piece)[sent:], *buffers[index + 1 :]]
        sent -= len(piece)
    return []


def _zeros(size: int) -> memoryview:
    return memoryview(bytearray(size))


def receive_frame(
    channel: socket.socket,
    limit: int | Callable[[], int] = limits.FRAME_MAX,
    *,
    idle_s: float | None = None,
    within_s: float | None = None,
    memory: Callable[[int], memoryview] = _zeros,
    begun: Callable[[int], None] | None = None,
) -> Frame | None:
    """Receive one frame; None when the peer closed between frames.

    The declared length is checked before memory is taken. With ``within_s`` the whole frame has
    that many seconds from its first byte, however it drips in, and ``idle_s`` (None: any time)
    bounds the wait for that byte; without it the channel's own time-out applies to each read.
    ``memory`` gives room for so many bytes of payload; very long ones are put together from zeros.
    ``begun`` hears how many there will be before they are received, and may take its time.
    Raises FrameError: MALFORMED for a bad or cut frame, TOO_LARGE above the bound of SPEC 9.2;
    OversizedFrameError above ``limit``, which a callable states when the frame begins. OSError and
    TimeoutError pass through.
    """
    if within_s is not None:
        channel.settimeout(idle_s)
    head = bytearray(_HEAD.size)
    got = channel.recv_into(head)
    if got == 0:
        return None
    end = None if within_s is None else time.monotonic() + within_s
    _fill(channel, memoryview(head)[got:], end)
    length, kind, budget = parse_head(head)
    bound = limit() if callable(limit) else limit
    if length > bound:
        _discard(channel, length - COUNTED, end)
        raise OversizedFrameError(Code.TOO_LARGE, f"frame of {length} bytes, limit {bound}")
    size = length - COUNTED
    if begun is not None:
        begun(size)
    return Frame(kind, budget, _receive_payload(channel, size, end, memory))


def _receive_payload(
    channel: socket.socket, size: int, end: float | None, memory: Callable[[int], memoryview]
) -> memoryview:
    """Take memory as bytes arrive: announcing a long frame costs its receiver nothing."""
    if size <= _FIRST:
        room = memory(size)
        _fill(channel, room, end)
        return room
    payload = bytearray(_FIRST)
    filled = 0
    while True:
        _fill(channel, memoryview(payload)[filled:], end)
        filled = len(payload)
        if filled == size:
            return memoryview(payload)
        payload += bytes(min(filled, size - filled))


def parse_head(head: Buffer) -> tuple[int, int, int]:
    """Return (length, type, budget in milliseconds) of a frame's first HEAD_BYTES bytes.

    Raises FrameError: MALFORMED if the length is below the head's own 5 bytes that it counts,
    TOO_LARGE above the bound of SPEC 9.2.
    """
    length, kind, budget = _HEAD.unpack(head)
    if length < COUNTED:
        raise FrameError(Code.MALFORMED, "frame shorter than its head")
    if length > limits.FRAME_MAX:
        raise FrameError(Code.TOO_LARGE, f"frame of {length} bytes, limit {limits.FRAME_MAX}")
    return length, kind, budget or limits.FRAME_BUDGET_DEFAULT


def _discard(channel: socket.socket, count: int, end: float | None) -> None:
    scratch = memoryview(bytearray(min(count, _SCRATCH)))
    while count:
        piece = scratch[:count]
        _fill(channel, piece, end)
        count -= len(piece)


def _fill(channel: socket.socket, view: memoryview, end: float | None) -> None:
    while view:
        if end is not None:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("the frame takes too long")
            channel.settimeout(left)
        got = channel.recv_into(view)
        if got == 0:
            raise FrameError(Code.MALFORMED, "connection closed within a frame")
        view = view[got:]


def send_error(channel: socket.socket, code: Code, detail: str) -> None:
    """Send the error answer of SPEC 9.2; ``detail`` is cut to its bound."""
    send_frame(channel, ERROR, encode_error(code, detail))


def encode_error(code: Code, detail: str) -> bytes:
    """Return an error answer's payload; ``detail`` is cut to its bound."""
    text = detail.encode()[: limits.DETAIL_MAX].decode(errors="ignore")
    return cbor.encode({"code": str(code), "detail": text})


def expect_answer(channel: socket.socket, kind: int) -> memoryview:
    """Receive the answer to a frame of type ``kind``; an error answer is raised as FrameError."""
    frame = receive_frame(channel)
    if frame is None:
        raise FrameError(Code.UNAVAILABLE, "the enclave closed the connection")
    if frame.type == ERROR:
        raise remote_error(bytes(frame.payload))
    if frame.type != kind | ANSWER:
        raise FrameError(Code.MALFORMED, f"answer of type {frame.type} to a frame of type {kind}")
    return frame.payload


def exchange(
    channel: socket.socket, kind: int, payload: Buffer | tuple[Buffer, ...] = b"", budget: int = 0
) -> memoryview:
    """Send one frame and return its answer's payload."""
    send_frame(channel, kind, payload, budget)
    return expect_answer(channel, kind)


def remote_error(payload: bytes) -> FrameError:
    """Read an error answer's payload; what cannot be read becomes MALFORMED."""
    try:
        answer = cbor.decode_map(payload, {"code": str, "detail": str})
        return FrameError(Code(answer["code"]), answer["detail"][: limits.DETAIL_MAX])
    except (cbor.CborError, ValueError):
        return FrameError(Code.MALFORMED, "error answer that cannot be read")
