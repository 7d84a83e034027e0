"""Copies bytes between two sockets, both ways, with bounded buffers and half-close."""

from __future__ import annotations

import contextlib
import select
import socket

from casemate import limits


class _Direction:
    """Bytes from ``source`` to ``sink``: read while nothing is pending, ended by end of file."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.pending = b""
        self.ended = False
        self._eof = False

    @property
    def wants_input(self) -> bool:
        return not self._eof and not self.pending

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.pending = self.source.recv(limits.EGRESS_BUFFER)
            self._eof = not self.pending

    def write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sent = self.sink.send(self.pending) if self.pending else 0
            self.pending = self.pending[sent:]
        if self._eof and not self.pending and not self.ended:
            self.ended = True
            with contextlib.suppress(OSError):  # the other side may have closed already
                self.sink.shutdown(socket.SHUT_WR)


def splice(left: socket.socket, right: socket.socket, idle_s: float) -> None:
    """Copy until both sides have ended, or nothing moved for ``idle_s`` seconds; raises OSError.

    The end of one side's stream is passed on while the other direction goes on.
    """
    left.setblocking(False)
    right.setblocking(False)
    directions = (_Direction(left, right), _Direction(right, left))
    while not all(direction.ended for direction in directions):
        ready = _wait(directions, idle_s)
        if not ready:
            return
        for direction in directions:
            if direction.wants_input and direction.source.fileno() in ready:
                direction.read()
            direction.write()


def _wait(directions: tuple[_Direction, ...], idle_s: float) -> frozenset[int]:
    """Return the descriptors that can go on; none after ``idle_s`` seconds."""
    masks: dict[int, int] = {}
    for direction in directions:
        if direction.wants_input:
            source = direction.source.fileno()
            masks[source] = masks.get(source, 0) | select.POLLIN
        if direction.pending:
            sink = direction.sink.fileno()
            masks[sink] = masks.get(sink, 0) | select.POLLOUT
    poll = select.poll()
    for descriptor, mask in masks.items():
        poll.register(descriptor, mask)
    return frozenset(descriptor for descriptor, _ in poll.poll(idle_s * 1000))
