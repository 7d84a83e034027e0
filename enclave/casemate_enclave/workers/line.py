"""One connection to a worker, over which one run at a time goes and comes back."""

from __future__ import annotations

import os
import select
import struct
from typing import TYPE_CHECKING

from casemate import limits
from casemate_enclave.refusals import Failure, RunError
from casemate_enclave.workers import packets
from casemate_enclave.workers.shared import Room, loan, make_room
from casemate_enclave.workers.tensors import (
    ALIGNMENT,
    PacketError,
    aligned,
    place,
    read_description,
    scatter,
    take,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator, Sequence

    from casemate.wire import Buffer
    from casemate_enclave.runtime import Meanwhile
    from casemate_enclave.workers.pace import Pace
    from casemate_enclave.workers.shared import Loan
    from casemate_enclave.workers.tensors import Array, Packed

    _Back = dict[str, Array] | RunError | None

_FAILURES = tuple(Failure)
_DONE = frozenset({packets.DONE_INLINE, packets.DONE_SHARED})


class WorkerLostError(Exception):
    """The worker ended, or said what cannot be and is ended; the run may be at fault or not."""


class Line:
    """Asks and waits on the caller's own thread. Not thread-safe.

    What comes back is a stranger's word: bounded, and copied before it is looked at, except numbers
    too large for that, whose every value is as good as any other.
    """

    def __init__(
        self, channel: socket.socket, answer_max: int, pace: Pace, number: int = 0
    ) -> None:
        """``number``: by which the worker knows it; ``pace`` is told how long runs take."""
        self.number = number
        self._pace = pace
        self._channel = channel
        self._most = answer_max
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._memory = packets.packet_memory()
        self._given: Room | None = None
        self._answers: Room | None = None
        self._one: int | None = None  # a run that has the line to itself
        self._may_need_room = False

    def ask(
        self, number: int, packed: Packed, deadline: float, meanwhile: Meanwhile = None
    ) -> dict[str, Array]:
        """Run, and do ``meanwhile`` before the answer is waited for.

        Raises RunError, or something else: then the line is of no more use. WorkerLostError: nor is
        the worker.
        """
        try:
            self._ask(number, packed, deadline)
            if meanwhile is not None:
                meanwhile()
            return self._answer(number)
        except (OSError, PacketError) as error:
            raise WorkerLostError from error
        finally:
            self._tidy()

    def begin(self, runs: Sequence[tuple[int, Packed, float]]) -> None:
        """Have several runs begun, whose ``record_size`` together a packet takes.

        Raises WorkerLostError.
        """
        pieces: list[Buffer] = []
        for number, packed, deadline in runs:
            description = packed.description
            head = packets.QUESTION.pack(
                packets.RUN_TOGETHER, len(description), deadline, number, 0, 0
            )
            gap = bytes(-(len(head) + len(description)) % ALIGNMENT)
            pieces += (head, description, gap, *scatter(packed))
        try:
            packets.send(self._channel, [b"".join(pieces)])
        except OSError as error:
            raise WorkerLostError from error

    def begin_one(self, number: int, packed: Packed, deadline: float) -> None:
        """Have one run begun, however large; raises WorkerLostError."""
        self._one, self._may_need_room = number, True
        try:
            self._ask(number, packed, deadline)
        except OSError as error:
            raise WorkerLostError from error

    def receive(self, patience_s: float) -> Iterable[tuple[int, _Back]]:
        """Iterate over what has come back of runs that were begun, by number.

        None is to run alone. Nothing if nothing comes back within ``patience_s`` seconds. Raises
        WorkerLostError, also while it is iterated over.
        """
        try:
            if not self._poll.poll(patience_s * 1000):
                return ()
            size = self._channel.recv_into(self._memory)
            if not size:
                raise WorkerLostError
            if self._one is None:
                return self._read(self._memory[:size])
            return self._read_one(self._one, size)
        except (OSError, PacketError) as error:
            raise WorkerLostError from error

    def _read(self, memory: memoryview) -> Iterator[tuple[int, _Back]]:
        at, size = 0, len(memory)
        try:
            while at < size:
                status, length, number, _, spent = packets.ANSWER.unpack_from(memory, at)
                begin = at + packets.ANSWER.size
                end = begin + length
                at = aligned(end)
                if status == packets.DONE_INLINE and end <= size:
                    self._pace.note(spent / 1e9)
                    layout = read_description(bytes(memory[begin:end]))
                    yield number, take(layout, memory, at, copy=True)
                    at += layout.total
                elif status == packets.ALONE:
                    self._pace.beware()
                    yield number, None
                elif 0 <= status - packets.FAILED < len(_FAILURES):
                    yield number, RunError(_FAILURES[status - packets.FAILED])
                else:
                    raise WorkerLostError
        except (PacketError, struct.error) as error:  # the latter of half an answer
            raise WorkerLostError from error

    def _read_one(self, number: int, size: int) -> tuple[tuple[int, _Back], ...]:
        try:
            status, length, total = self._head(size, number)
            if status == packets.NEEDS_ROOM and self._may_need_room:
                self._may_need_room = False
                self._make_room(total)
                return ()
            back: _Back = self._tensors(status, length, size)
        except RunError as error:
            # With its traceback it would keep this frame and its callers', and these it.
            back = error.with_traceback(None)
        self._one = None
        self._tidy()
        return ((number, back),)

    def _ask(self, number: int, packed: Packed, deadline: float) -> None:
        description, total = packed.description, packed.layout.total
        if total <= limits.WORKER_INLINE_MAX:
            kind = packets.RUN_INLINE
            head = packets.QUESTION.pack(kind, len(description), deadline, number, 0, 0)
            gap = bytes(-(len(head) + len(description)) % ALIGNMENT)
            packets.send(self._channel, [head, description, gap, *scatter(packed)])
            return
        if (lent := _loan(packed)) is not None:
            kind, facts = packets.RUN_LENT, (lent.size, lent.start)
            head = packets.QUESTION.pack(kind, len(description), deadline, number, *facts)
            packets.send(self._channel, [head, description], lent.descriptor)
            return
        room, descriptor = self._room(total)
        place(packed, room.memory)
        given = 0 if descriptor is None else room.size
        kind = packets.RUN_SHARED
        head = packets.QUESTION.pack(kind, len(description), deadline, number, given, 0)
        self._send_closing([head, description], descriptor)

    def _room(self, total: int) -> tuple[Room, int | None]:
        if self._given is not None and self._given.size >= total:
            return self._given, None
        self._given, descriptor = make_room(total, answers=False)
        return self._given, descriptor

    def _answer(self, number: int) -> dict[str, Array]:
        size = self._channel.recv_into(self._memory)
        status, length, total = self._head(size, number)
        if status == packets.NEEDS_ROOM:
            self._make_room(total)
            size = self._channel.recv_into(self._memory)
            status, length, _ = self._head(size, number)
        return self._tensors(status, length, size)

    def _tensors(self, status: int, length: int, size: int) -> dict[str, Array]:
        end = packets.ANSWER.size + length
        if status not in _DONE or end > size:
            raise PacketError("not an answer")
        layout = read_description(bytes(self._memory[packets.ANSWER.size : end]))
        if status == packets.DONE_INLINE:
            return take(layout, self._memory[:size], aligned(end), copy=True)
        if self._answers is None:
            raise PacketError("an answer that lies nowhere")
        return take(layout, self._answers.memory, 0, copy=self._is_kept(self._answers))

    def _head(self, size: int, number: int) -> tuple[int, int, int]:
        if size < packets.ANSWER.size:  # 0: the end
            raise PacketError("no answer")
        status, length, answered, total, spent = packets.ANSWER.unpack_from(self._memory)
        if answered != number:
            raise PacketError("an answer to another run")
        if status in _DONE:
            self._pace.note(spent / 1e9)
        if 0 <= status - packets.FAILED < len(_FAILURES):
            raise RunError(_FAILURES[status - packets.FAILED])
        return status, length, total

    def _make_room(self, total: int) -> None:
        if total > self._most:
            raise PacketError("an answer larger than runs may make")
        self._answers, descriptor = make_room(total, answers=True)
        head = packets.QUESTION.pack(packets.ROOM, 0, 0.0, 0, self._answers.size, 0)
        self._send_closing([head], descriptor)

    def _send_closing(self, pieces: Sequence[Buffer], descriptor: int | None) -> None:
        """Send, and give the descriptor back if there is one."""
        try:
            packets.send(self._channel, pieces, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _is_kept(self, room: Room) -> bool:
        return room.size <= limits.WORKER_ROOM_KEPT

    def _tidy(self) -> None:
        """Keep no more memory than a usual run takes; the worker does likewise."""
        if self._given is not None and not self._is_kept(self._given):
            self._given = None
        if self._answers is not None and not self._is_kept(self._answers):
            self._answers = None

    def close(self) -> None:
        """Give the connection up."""
        self._channel.close()


def record_size(packed: Packed) -> int:
    """Return the bytes that one of several runs takes of a packet."""
    return aligned(packets.QUESTION.size + len(packed.description)) + packed.layout.total


def _loan(packed: Packed) -> Loan | None:
    """Return where the only tensor lies, if a worker can look at it there."""
    if len(packed.raws) != 1 or isinstance(packed.raws[0], bytes):
        return None
    return loan(packed.raws[0])
