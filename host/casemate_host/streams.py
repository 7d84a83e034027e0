"""Streams relayed: each has a connection to the enclave, a worker and a reader (SPEC 9.3.2).

Promise: nothing is kept here but the message that is on its way in each direction. What either side
does not take yet stays with the other: in the kernel's buffers, then in gRPC's window.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Final

from casemate import frames, limits
from casemate.errors import Code, FrameError
from casemate.frames import FrameType
from casemate_host.metrics import ADMISSION, RELAY
from casemate_host.transfer import await_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc

    from casemate_host.call import Call
    from casemate_host.callers import Caller
    from casemate_host.desk import Desk
    from casemate_host.relay import Relay
    from casemate_host.standing import Board
    from casemate_host.transfer import Connection
    from casemate_host.workers import Workers

_BLOCK: Final = 64 * limits.KIB
_GRACE_S: Final = 0.5  # as in the relay: the enclave ends the stream at the deadline itself


class StreamService:
    """``InferStream``: relays streams to the enclave; knows of a message its length alone."""

    def __init__(self, desk: Desk, relay: Relay, board: Board, workers: Workers) -> None:
        self._workers = workers
        self._desk = desk
        self._relay = relay
        self._board = board

    def serve(
        self, caller: Caller | None, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Answer one call, which counts as one, with the bytes of all its messages."""

        def answer(call: Call) -> Iterator[bytes]:
            self._board.require()
            with self._desk.admitted(caller, context) as admitted, admitted.stream():
                call.of(admitted.name)
                with call.trace.step(ADMISSION):
                    first = self._desk.receive(
                        messages, context, limits.STREAM_MESSAGE_MAX, self._workers
                    )
                    admitted.spend(len(first))
                with (
                    call.trace.step(RELAY),
                    contextlib.closing(self._relay.dial(call)) as connection,
                ):
                    rest = _counted(messages, admitted)
                    yield from self._exchange(connection, first, rest, call)

        return self._desk.serve_stream("InferStream", context, answer)

    def _exchange(
        self, connection: Connection, first: bytes, messages: Iterator[bytes], call: Call
    ) -> Iterator[bytes]:
        """Yield the answer; raises FrameError.

        The enclave's own error, DEADLINE_EXCEEDED, or UNAVAILABLE: any part of the stream may have
        been executed.
        """
        budget_s = call.remaining_s()
        connection.set_timeout(budget_s + _GRACE_S)
        channel = connection.channel
        call.attach(channel)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its answer says why
                frames.send_frame(channel, FrameType.STREAM, first, int(budget_s * 1000) or 1)
            sender = threading.Thread(
                target=_pass_on, args=(channel, messages), name="stream", daemon=True
            )
            sender.start()
            yield from _answers(channel)
        except _EnclaveError:
            raise
        except BlockingIOError:
            detail = "no end of the stream before the deadline"
            raise FrameError(Code.DEADLINE_EXCEEDED, detail) from None
        except (FrameError, OSError):
            call.remaining_s()  # a cancelled call's socket was shut by us
            self._relay.lost()
            detail = "the enclave went away within the stream"
            raise FrameError(Code.UNAVAILABLE, detail) from None
        finally:
            call.detach()
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)  # the sender stops


def _counted(messages: Iterator[bytes], caller: Caller) -> Iterator[bytes]:
    for message in messages:
        caller.spend(len(message))
        yield message


class _EnclaveError(FrameError):
    """What the enclave itself answered."""


def _pass_on(channel: socket.socket, messages: Iterator[bytes]) -> None:
    """Send the caller's messages as they come; a fault of either side ends the connection."""
    complete = False
    with contextlib.suppress(Exception):  # gRPC raises a bare one when the call is over
        for message in messages:
            if not 0 < len(message) <= limits.STREAM_MESSAGE_MAX:
                break
            frames.send_frame(channel, FrameType.STREAM, message)
        else:
            frames.send_frame(channel, FrameType.STREAM, b"")
            complete = True
    if not complete:
        with contextlib.suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)


def _answers(channel: socket.socket) -> Iterator[bytes]:
    """Yield the enclave's messages, those that are there together joined; raises FrameError."""
    buffer = _Frames(channel)
    while True:
        message, complete = buffer.next_message()
        if message:
            yield message
        if complete:
            return


class _Frames:
    """Takes frames off a blocking socket, many in one call where many are there."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._data = b""
        self._at = 0

    def next_message(self) -> tuple[bytes, bool]:
        """Return one message or several joined, and whether the answer is complete."""
        messages: list[bytes] = []
        size = 0
        while size < _BLOCK:
            payload = self._payload() if messages else self._await_payload()
            if payload is None:
                break
            if not payload:
                return b"".join(messages), True
            messages.append(payload)
            size += len(payload)
        return (messages[0] if len(messages) == 1 else b"".join(messages)), False

    def _await_payload(self) -> bytes:
        """Return the next frame's payload; raises the enclave's error."""
        while (payload := self._payload()) is None:
            self._raise_error()
            missing = (self._frame()[1] if self._has(frames.HEAD_BYTES) else 0) - self._left
            if missing > _BLOCK:
                self._take(await_bytes(self._channel, missing))
            else:
                self._take(self._channel.recv(_BLOCK))
        return payload

    def _payload(self) -> bytes | None:
        """Return the next frame's payload, unless it is not here yet or an error."""
        if not self._has(frames.HEAD_BYTES):
            return None
        kind, size = self._frame()
        if kind == frames.ERROR or not self._has(size):
            return None
        if kind != FrameType.STREAM | frames.ANSWER:
            raise FrameError(Code.INTERNAL, f"frame of type {kind} within a stream")
        start, self._at = self._at + frames.HEAD_BYTES, self._at + size
        return self._data[start : self._at]

    def _raise_error(self) -> None:
        if not self._has(frames.HEAD_BYTES):
            return
        kind, size = self._frame()
        if kind == frames.ERROR and self._has(size):
            payload = self._data[self._at + frames.HEAD_BYTES : self._at + size]
            error = frames.remote_error(payload)
            raise _EnclaveError(error.code, error.detail)

    @property
    def _left(self) -> int:
        return len(self._data) - self._at

    def _has(self, size: int) -> bool:
        return self._left >= size

    def _frame(self) -> tuple[int, int]:
        """Return type and size, head included, of the frame that begins here."""
        head = self._data[self._at : self._at + frames.HEAD_BYTES]
        length, kind, _ = frames.parse_head(head)
        size = frames.HEAD_BYTES - frames.COUNTED + length
        if size > frames.HEAD_BYTES + limits.STREAM_MESSAGE_MAX:
            raise FrameError(Code.TOO_LARGE, "a message above the bound of streams")
        return kind, size

    def _take(self, data: bytes) -> None:
        if not data:
            raise FrameError(Code.UNAVAILABLE, "the enclave went away within the stream")
        self._data = self._data[self._at :] + data if self._left else data
        self._at = 0
