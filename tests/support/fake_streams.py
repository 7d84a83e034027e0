"""A stream as the fake enclave carries it (SPEC 9.3.2): its first message says what it does.

Up to the first space: ``hold`` reads nothing until it is released; ``refuse:CODE`` and ``lie:HEX``
answer with an error or with these bytes (``stall:HEX``: and hold), ``drop`` goes away, each behind
an echo of the first message; ``flood`` answers more than anybody takes. What is left is echoed,
message for message.
"""

from __future__ import annotations

import contextlib
import select
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casemate import frames
from casemate.errors import Code
from casemate.frames import ANSWER, FrameType

if TYPE_CHECKING:
    import socket
    import threading

KIND = FrameType.STREAM | ANSWER
FLOOD = frames.encode_frame(KIND, bytes(100_000))


@dataclass
class FakeStreams:
    """What became of them: in ``ends`` whether each was complete, or hung up on before."""

    released: threading.Event
    budgets: list[int] = field(default_factory=list)
    questions: list[bytes] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)

    def serve(self, channel: socket.socket, first: frames.Frame) -> None:
        """Carry one and end its connection."""
        self.budgets.append(first.budget)
        complete = False
        with contextlib.suppress(OSError):
            complete = self._carry(channel, bytes(first.payload))
        self.ends.append(complete)
        with contextlib.suppress(OSError):
            channel.shutdown(2)

    def _carry(self, channel: socket.socket, first: bytes) -> bool:
        verb, _, argument = first[:64].split(b" ")[0].partition(b":")
        self.questions.append(first[:64])
        if verb == b"hold":
            self._hold(channel)
        if verb == b"refuse" and argument:
            frames.send_frame(channel, KIND, first)
            frames.send_error(channel, Code(argument.decode()), "scripted")
            return True
        if verb in {b"lie", b"stall"}:
            frames.send_frame(channel, KIND, first)
            channel.sendall(bytes.fromhex(argument.decode()))
            if verb == b"stall":
                self._hold(channel)
            return True
        if verb == b"drop":
            frames.send_frame(channel, KIND, first)
            return True
        if verb == b"flood":
            while True:
                channel.sendall(FLOOD)
        return self._echo(channel, first)

    def _hold(self, channel: socket.socket) -> None:
        poll = select.poll()
        poll.register(channel, select.POLLRDHUP)
        while not self.released.wait(0.01):
            if poll.poll(0):
                raise ConnectionResetError

    def _echo(self, channel: socket.socket, first: bytes) -> bool:
        frames.send_frame(channel, KIND, first)
        while first and (frame := frames.receive_frame(channel)) is not None:
            assert frame.type == FrameType.STREAM
            frames.send_frame(channel, KIND, frame.payload)
            self.questions.append(bytes(frame.payload[:64]))
            if not frame.payload:
                return True
        return False
