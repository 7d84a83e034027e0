"""Receives answers without copying them.

gRPC wants ``bytes``. One ``recv`` that waits for all of them fills the object that is handed on; a
buffer copied afterwards costs twice the memory and, at 600 KiB, most of the relay's time in page
faults. It needs blocking sockets, so the time-outs are the kernel's.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

from casemate import frames
from casemate.errors import Code, FrameError

_TIMEVAL: Final = struct.Struct("@ll")


@dataclass(frozen=True, slots=True)
class Answer:
    """One received frame of the enclave."""

    type: int
    payload: bytes


def set_timeout(channel: socket.socket, timeout_s: float) -> None:
    """Bound each send and receive on a blocking socket; what exceeds it is a BlockingIOError."""
    microseconds = max(1, int(timeout_s * 1_000_000))
    value = _TIMEVAL.pack(*divmod(microseconds, 1_000_000))
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def receive_answer(channel: socket.socket) -> Answer | None:
    """Receive one frame from a blocking socket; None when the peer closed before it.

    Raises FrameError: MALFORMED for a bad or cut frame, TOO_LARGE above its bound, before memory
    is taken; BlockingIOError after the time-out; other OSErrors pass through.
    """
    head = _receive(channel, frames.HEAD_BYTES)
    if not head:
        return None
    length, kind, _ = frames.parse_head(head)
    size = length - frames.COUNTED
    payload = _receive(channel, size) if size else b""
    if len(payload) != size:
        raise FrameError(Code.MALFORMED, "connection closed within a frame")
    return Answer(kind, payload)


def _receive(channel: socket.socket, size: int) -> bytes:
    """Receive ``size`` bytes; none, if the stream ends before the first."""
    data = channel.recv(size, socket.MSG_WAITALL)
    if not data or len(data) == size:
        return data
    pieces, left = [data], size - len(data)
    while left:
        piece = channel.recv(left, socket.MSG_WAITALL)
        if not piece:
            raise FrameError(Code.MALFORMED, "connection closed within a frame")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
