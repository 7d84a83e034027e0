"""A worker: one model, loaded and run for the enclave over the connections that it hands in.

Everything here runs after the confinement of a worker. It is trusted with nothing but its model and
the tensors of its runs; whatever becomes of it, the enclave sees an answer, or the end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from casemate import cbor, limits
from casemate.sealed_model import ModelContents, ModelHeader
from casemate_enclave.huge_pages import huge_pages
from casemate_enclave.memory import cost_of_loading
from casemate_enclave.refusals import Failure, Refusal, RefusedError, RunError
from casemate_enclave.runtime import OnnxRuntime
from casemate_enclave.workers import packets
from casemate_enclave.workers.shared import Room
from casemate_enclave.workers.tensors import (
    ALIGNMENT,
    Layout,
    Packed,
    aligned,
    pack,
    place,
    read_description,
    scatter,
    take,
)

if TYPE_CHECKING:
    from casemate.wire import Buffer
    from casemate_enclave.runtime import OnnxModel, Tensors
    from casemate_enclave.watchdog import Terminable

# Runs that were given up before they were begun: as many as may be under way.
_CANCELLED_KEPT = 1024
_KIND = struct.Struct("<I")


def serve_model(control: socket.socket) -> NoReturn:
    """Load the model that comes first, then run it until the enclave closes ``control``."""
    memory = packets.packet_memory()
    size, contents = packets.receive(control, memory)
    if contents is None:
        os._exit(1)
    try:
        model = _load(bytes(memory[packets.COMMAND.size : size]), contents)
    except RefusedError as error:
        control.send(packets.LOADED.pack(0, error.refusal.number, error.place))
        os._exit(0)
    control.send(packets.LOADED.pack(1, 0, model.on_accelerators))
    _Worker(control, model).work(memory)
    os._exit(0)


def _load(settings: bytes, contents: int) -> OnnxModel:
    encoded, files, providers, run_bytes, threads = cbor.decode(settings)
    header = ModelHeader.parse(encoded)
    runtime = OnnxRuntime(providers, run_bytes=run_bytes, threads=threads)
    given = ModelContents(contents, dict(files))
    try:
        with huge_pages(cost_of_loading(header.total_bytes), soon=header.total_bytes):
            return runtime.load(given, header)
    except MemoryError:
        raise RefusedError(Refusal.RUNTIME) from None
    finally:
        given.close()


class _Worker:
    def __init__(self, control: socket.socket, model: OnnxModel) -> None:
        self._control = control
        self._model = model
        self._lines: dict[int, _Line] = {}
        self._running: dict[int, Terminable] = {}
        self._cancelled: dict[int, None] = {}

    def work(self, memory: memoryview) -> None:
        """Open lines and cancel runs as told."""
        while True:
            size, descriptor = packets.receive(self._control, memory)
            if size != packets.COMMAND.size:
                return
            command, number = packets.COMMAND.unpack_from(memory)
            if command == packets.OPEN and descriptor is not None:
                line = _Line(socket.socket(fileno=descriptor), self)
                threading.Thread(
                    target=self._work, args=(number, line), name="line", daemon=True
                ).start()
            elif command == packets.SPLIT and (known := self._lines.get(number)) is not None:
                threading.Thread(target=known.help, name="help", daemon=True).start()
            elif command == packets.CANCEL:
                self._cancel(number)

    def _work(self, number: int, line: _Line) -> None:
        self._lines[number] = line
        try:
            line.work()
        finally:
            del self._lines[number]

    # One thread notes that a run is cancelled and then looks for it, the other notes the run and
    # then looks whether it is cancelled: at least one of them finds the other's note.

    def _cancel(self, number: int) -> None:
        self._cancelled[number] = None
        if len(self._cancelled) > _CANCELLED_KEPT:
            del self._cancelled[next(iter(self._cancelled))]
        if (run := self._running.get(number)) is not None:
            run.terminate = True

    def begin(self, number: int, run: Terminable) -> None:
        """Have ``run`` ended when its number is cancelled, or at once if it was."""
        self._running[number] = run
        if number in self._cancelled:
            run.terminate = True

    def end(self, number: int) -> None:
        """Forget a run that is over."""
        self._running.pop(number, None)
        self._cancelled.pop(number, None)

    def run(self, number: int, layout: Layout, inputs: Tensors, deadline: float) -> Tensors:
        """Run; raises RunError."""
        return self._model.run(inputs, layout.wanted, deadline, _ByNumber(self, number))


class _ByNumber:
    """The ``Stop`` of one run."""

    __slots__ = ("_number", "_worker")

    def __init__(self, worker: _Worker, number: int) -> None:
        self._worker = worker
        self._number = number

    def begin(self, run: Terminable) -> None:
        self._worker.begin(self._number, run)

    def end(self, _run: Terminable) -> None:
        self._worker.end(self._number)


class _Line:
    """One connection: the runs of one packet one after the other, on its own thread."""

    def __init__(self, channel: socket.socket, worker: _Worker) -> None:
        self._channel = channel
        self._worker = worker
        self._several = _Several(channel, worker)
        self._memory = packets.packet_memory()
        self._given: Room | None = None
        self._answers: Room | None = None

    def work(self) -> None:
        """Answer until the enclave closes the line."""
        with self._channel:
            while True:
                size, descriptor = packets.receive(self._channel, self._memory)
                if not size:
                    return
                (kind,) = _KIND.unpack_from(self._memory)
                if kind == packets.RUN_TOGETHER:
                    self._several.begin(self._read(size))
                else:
                    self._answer(size, descriptor)
                    self._tidy()

    def help(self) -> None:
        """Do what is left of runs that came together: one of them takes long."""
        self._several.help()

    def _read(self, size: int) -> list[_Run]:
        runs: list[_Run] = []
        memory, at = self._memory[:size], 0
        while at < size:
            _, length, deadline, number, _, _ = packets.QUESTION.unpack_from(memory, at)
            begin = at + packets.QUESTION.size
            layout = read_description(bytes(memory[begin : begin + length]))
            start = aligned(begin + length)
            runs.append(_Run(number, layout, memory, start, deadline))
            at = start + layout.total
        return runs

    def _answer(self, size: int, descriptor: int | None) -> None:
        begun = time.monotonic_ns()
        question = packets.QUESTION.unpack_from(self._memory)
        kind, length, deadline, number, given, start = question
        lent = None
        if descriptor is not None:
            lent = Room(descriptor, given, writable=False)
            os.close(descriptor)
        if kind == packets.RUN_SHARED:
            lent = self._given = lent or self._given
        try:
            layout, inputs = self._inputs(length, size, lent, start)
            packed = pack(self._worker.run(number, layout, inputs, deadline))
        except RunError as error:
            self._channel.send(_failed(number, error.failure, begun))
        except Exception:  # noqa: BLE001 - whatever it is, the enclave learns that the run failed
            self._channel.send(_failed(number, Failure.FAILED, begun))
        else:
            self._give(number, packed, time.monotonic_ns() - begun)

    def _inputs(
        self, length: int, size: int, lent: Room | None, start: int
    ) -> tuple[Layout, Tensors]:
        end = packets.QUESTION.size + length
        layout = read_description(bytes(self._memory[packets.QUESTION.size : end]))
        if lent is not None:
            return layout, take(layout, lent.memory, start, copy=False)
        return layout, take(layout, self._memory[:size], aligned(end), copy=False)

    def _give(self, number: int, packed: Packed, spent: int) -> None:
        description, total = packed.description, packed.layout.total
        if total <= limits.WORKER_INLINE_MAX:
            self._channel.sendmsg(_inline(number, packed, spent))
            return
        room = self._room(number, total)
        place(packed, room.memory)
        head = packets.ANSWER.pack(packets.DONE_SHARED, len(description), number, total, spent)
        self._channel.sendmsg([head, description])

    def _room(self, number: int, total: int) -> Room:
        if self._answers is None or self._answers.size < total:
            self._answers = None
            self._channel.send(packets.ANSWER.pack(packets.NEEDS_ROOM, 0, number, total, 0))
            size, descriptor = packets.receive(self._channel, self._memory)
            if descriptor is None or size != packets.QUESTION.size:
                os._exit(1)
            *_, given, _ = packets.QUESTION.unpack_from(self._memory)
            self._answers = Room(descriptor, given, writable=True)
            os.close(descriptor)
        return self._answers

    def _tidy(self) -> None:
        """Keep no more memory than a usual run takes; the enclave does likewise."""
        if self._given is not None and self._given.size > limits.WORKER_ROOM_KEPT:
            self._given = None
        if self._answers is not None and self._answers.size > limits.WORKER_ROOM_KEPT:
            self._answers = None


class _Run(NamedTuple):
    """One of several runs, whose inputs lie in ``memory`` from ``start`` on."""

    number: int
    layout: Layout
    memory: memoryview
    start: int
    deadline: float


class _Several:
    """The runs of one packet, done by one thread, or by more if one of them takes long.

    What is ready leaves with the last one, when a packet is full, or before long. The enclave sends
    nothing else until all have come back.
    """

    def __init__(self, channel: socket.socket, worker: _Worker) -> None:
        self._channel = channel
        self._worker = worker
        self._left: deque[_Run] = deque()
        self._lock = threading.Lock()
        self._ready: list[Buffer] = []
        self._size = 0
        self._due = 0.0

    def begin(self, runs: list[_Run]) -> None:
        """Do them all, unless others help."""
        self._left.extend(runs)
        self.work()

    def help(self) -> None:
        """Send what is ready, and do what is left."""
        with self._lock:
            self._send()
        self.work()

    def work(self) -> None:
        """Do what is left."""
        with contextlib.suppress(IndexError):
            while True:
                run = self._left.popleft()
                self._put(self._done(run))

    def _done(self, run: _Run) -> list[Buffer]:
        begun = time.monotonic_ns()
        try:
            inputs = take(run.layout, run.memory, run.start, copy=False)
            packed = pack(self._worker.run(run.number, run.layout, inputs, run.deadline))
        except RunError as error:
            return [_failed(run.number, error.failure, begun)]
        except Exception:  # noqa: BLE001 - as for one
            return [_failed(run.number, Failure.FAILED, begun)]
        spent = time.monotonic_ns() - begun
        if packed.layout.total > limits.WORKER_INLINE_MAX:
            return [packets.ANSWER.pack(packets.ALONE, 0, run.number, packed.layout.total, spent)]
        return _inline(run.number, packed, spent)

    def _put(self, pieces: list[Buffer]) -> None:
        answer = b"".join(pieces)
        if gap := -len(answer) % ALIGNMENT:
            answer += bytes(gap)
        now = time.monotonic()
        with self._lock:
            if self._size + len(answer) > limits.WORKER_MESSAGE_MAX:
                self._send()
            if not self._ready:
                self._due = now + limits.WORKER_LINGER_S
            self._ready.append(answer)
            self._size += len(answer)
            if not self._left or now > self._due:
                self._send()

    def _send(self) -> None:
        ready, self._ready, self._size = self._ready, [], 0
        if ready:
            self._channel.send(b"".join(ready))


def _failed(number: int, failure: Failure, begun: int) -> bytes:
    status = packets.FAILED + list(Failure).index(failure)
    return packets.ANSWER.pack(status, 0, number, 0, time.monotonic_ns() - begun)


def _inline(number: int, packed: Packed, spent: int) -> list[Buffer]:
    description, total = packed.description, packed.layout.total
    head = packets.ANSWER.pack(packets.DONE_INLINE, len(description), number, total, spent)
    gap = bytes(-(len(head) + len(description)) % ALIGNMENT)
    return [head, description, gap, *scatter(packed)]
