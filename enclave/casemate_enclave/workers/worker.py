"""A worker: one model, loaded and run for the enclave over the connections that it hands in.

Everything here runs after the confinement of a worker. It is trusted with nothing but its model and
the tensors of its runs; whatever becomes of it, the enclave sees an answer, or the end.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, NoReturn

from casemate import cbor, limits
from casemate.sealed_model import ModelContents, ModelHeader
from casemate_enclave.cancellation import Cancellation
from casemate_enclave.memory import cost_of_loading, huge_pages
from casemate_enclave.refusals import Failure, Refusal, RefusedError, RunError
from casemate_enclave.runtime import OnnxRuntime
from casemate_enclave.workers import packets
from casemate_enclave.workers.shared import Room
from casemate_enclave.workers.tensors import (
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
    from casemate_enclave.runtime import LoadedModel, Tensors

_CANCELLED_KEPT = 64  # runs that were given up before they were read: as many as run at a time


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
    control.send(packets.LOADED.pack(1, 0, 0))
    _Worker(control, model).work(memory)
    os._exit(0)


def _load(settings: bytes, contents: int) -> LoadedModel:
    encoded, files, providers, run_bytes, threads = cbor.decode(settings)
    header = ModelHeader.parse(encoded)
    runtime = OnnxRuntime(providers, run_bytes=run_bytes, threads=threads)
    given = ModelContents(contents, dict(files))
    try:
        with huge_pages(cost_of_loading(header.total_bytes)):
            return runtime.load(given, header)
    except MemoryError:
        raise RefusedError(Refusal.RUNTIME) from None
    finally:
        given.close()


class _Worker:
    def __init__(self, control: socket.socket, model: LoadedModel) -> None:
        self._control = control
        self._model = model
        self._lock = threading.Lock()
        self._running: dict[int, Cancellation] = {}
        self._cancelled: deque[int] = deque(maxlen=_CANCELLED_KEPT)

    def work(self, memory: memoryview) -> None:
        """Open lines and cancel runs as told."""
        while True:
            size, descriptor = packets.receive(self._control, memory)
            if size != packets.COMMAND.size:
                return
            command, number = packets.COMMAND.unpack_from(memory)
            if command == packets.OPEN and descriptor is not None:
                line = _Line(socket.socket(fileno=descriptor), self)
                threading.Thread(target=line.work, name="line", daemon=True).start()
            elif command == packets.CANCEL:
                self._cancel(number)

    def _cancel(self, number: int) -> None:
        with self._lock:
            self._cancelled.append(number)
            run = self._running.get(number)
        if run is not None:
            run.cancel()

    def run(self, number: int, layout: Layout, inputs: Tensors, deadline: float) -> Tensors:
        """Run; raises RunError."""
        cancellation = Cancellation()
        with self._lock:
            self._running[number] = cancellation
            given_up = number in self._cancelled
        if given_up:
            cancellation.cancel()
        try:
            return self._model.run(inputs, layout.wanted, deadline, cancellation)
        finally:
            with self._lock:
                del self._running[number]


class _Line:
    """One connection: one run at a time, on its own thread."""

    def __init__(self, channel: socket.socket, worker: _Worker) -> None:
        self._channel = channel
        self._worker = worker
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
                self._answer(size, descriptor)
                self._tidy()

    def _answer(self, size: int, descriptor: int | None) -> None:
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
            self._fail(number, error.failure)
        except Exception:  # noqa: BLE001 - whatever it is, the enclave learns that the run failed
            self._fail(number, Failure.FAILED)
        else:
            self._give(number, packed)

    def _inputs(
        self, length: int, size: int, lent: Room | None, start: int
    ) -> tuple[Layout, Tensors]:
        end = packets.QUESTION.size + length
        layout = read_description(bytes(self._memory[packets.QUESTION.size : end]))
        if lent is not None:
            return layout, take(layout, lent.memory, start, copy=False)
        return layout, take(layout, self._memory[:size], aligned(end), copy=False)

    def _fail(self, number: int, failure: Failure) -> None:
        status = packets.FAILED + list(Failure).index(failure)
        self._channel.send(packets.ANSWER.pack(status, 0, number, 0))

    def _give(self, number: int, packed: Packed) -> None:
        description, total = packed.description, packed.layout.total
        if total <= limits.WORKER_INLINE_MAX:
            head = packets.ANSWER.pack(packets.DONE_INLINE, len(description), number, total)
            gap = bytes(-(len(head) + len(description)) % 64)
            self._channel.sendmsg([head, description, gap, *scatter(packed)])
            return
        room = self._room(number, total)
        place(packed, room.memory)
        head = packets.ANSWER.pack(packets.DONE_SHARED, len(description), number, total)
        self._channel.sendmsg([head, description])

    def _room(self, number: int, total: int) -> Room:
        if self._answers is None or self._answers.size < total:
            self._answers = None
            self._channel.send(packets.ANSWER.pack(packets.NEEDS_ROOM, 0, number, total))
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
