"""One worker as the enclave has it: a model loaded in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
import threading
from typing import TYPE_CHECKING

from casemate import limits
from casemate_enclave.refusals import Failure, Refusal, RefusedError, RunError
from casemate_enclave.watchdog import OnTermination
from casemate_enclave.workers import packets
from casemate_enclave.workers.line import Line, WorkerLostError, record_size
from casemate_enclave.workers.pace import Pace
from casemate_enclave.workers.pipeline import Pipeline
from casemate_enclave.workers.tensors import PacketError, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate_enclave.accelerators import Needs
    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.runs import Run
    from casemate_enclave.runtime import Meanwhile, Tensors
    from casemate_enclave.watchdog import Watchdog
    from casemate_enclave.workers.spawning import Spawner

_PLACES_MAX = limits.TENSORS_MAX
_ALL = 100  # percent


class Worker:
    """Runs a model in its process; thread-safe. Each run at a time has a line of its own."""

    def __init__(
        self,
        spawner: Spawner,
        watchdog: Watchdog,
        *,
        data_bytes: int,
        needs: Needs,
        answer_max: int,
        ended: Callable[[Worker, int], None],
    ) -> None:
        """Start the process; ``ended`` is called once with this and how it ended, unless dismissed.

        Raises RefusedError(ENDED).
        """
        self._spawner = spawner
        self._watchdog = watchdog
        self._answer_max = answer_max
        self._on_end = ended
        self._dismissed = False
        self._closed = False
        self._loading = True  # what it says of that may be unread when it has ended
        self._gone = False
        self._idle: list[Line] = []
        self.pace = Pace()
        self._runs = itertools.count(1)
        self._lines = itertools.count(1)
        self._opening = threading.Lock()
        try:
            self._number, self._control = spawner.start(data_bytes, needs, self._has_ended)
        except OSError:
            raise RefusedError(Refusal.ENDED) from None

    def load(self, settings: bytes, contents: int, patience_s: float) -> int:
        """Hand over what to load, and await the outcome; raises RefusedError.

        Returns the share of the model's nodes that run on accelerators, in percent. Who is refused
        dismisses the worker.
        """
        command = packets.COMMAND.pack(packets.LOAD, 0)
        self._control.settimeout(patience_s)
        try:
            packets.send(self._control, [command, settings], contents, wait=True)
            answer = self._control.recv(packets.LOADED.size)
        except TimeoutError:
            raise RefusedError(Refusal.TIME) from None
        except OSError:
            answer = b""
        if len(answer) != packets.LOADED.size:
            raise RefusedError(Refusal.ENDED)
        loaded, refusal, place = packets.LOADED.unpack(answer)
        if not loaded:
            known = refusal < len(Refusal) and place < _PLACES_MAX
            raise RefusedError.numbered(refusal, place) if known else RefusedError(Refusal.ENDED)
        self._control.settimeout(None)
        self._loading = False
        if self._gone:
            self.close()
        return min(int(place), _ALL)

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None = None,
        meanwhile: Meanwhile = None,
    ) -> Tensors:
        """Run as ``LoadedModel.run``; raises WorkerLostError if the worker ends meanwhile."""
        try:
            packed = pack(inputs, outputs)
        except (PacketError, TypeError):
            raise RunError(Failure.FAILED) from None
        line = self._line()
        number = next(self._runs)
        given_up = OnTermination(functools.partial(self.cancel, number))
        cancelled = cancellation.ending(given_up) if cancellation else contextlib.nullcontext()
        overdue = self._watchdog.until(deadline + limits.WORKER_GRACE_S, OnTermination(self.kill))
        try:
            with overdue, cancelled:
                answer = line.ask(number, packed, deadline, meanwhile)
        except WorkerLostError:
            self.kill()
            line.close()
            raise
        except RunError:
            self.keep(line)
            raise
        self.keep(line)
        if answer.keys() != set(outputs):
            self.kill()
            raise WorkerLostError
        return answer

    def begin(
        self, runs: Sequence[Run], ended: Callable[[bool], None], *, patient: bool = False
    ) -> Pipeline | None:
        """Send those of ``runs`` that a packet takes on an idle line, or one, however large.

        None if there is no such line, and none is opened as for who is ``patient``. ``ended`` as
        for ``Pipeline``. Raises WorkerLostError: then none has begun.
        """
        numbers: dict[int, int] = {}
        sent, size = [], 0
        for place, run in enumerate(runs):
            try:
                packed = pack(run.inputs, run.outputs)
            except (PacketError, TypeError):
                continue
            if len(runs) > 1:
                record = record_size(packed)
                fits = size + record <= limits.WORKER_MESSAGE_MAX
                if packed.layout.total > limits.WORKER_INLINE_MAX or not fits:
                    continue
                size += record
            number = next(self._runs)
            numbers[number] = place
            sent.append((number, packed, run.deadline))
        line = self._idle_line() if sent else None
        if line is None and patient and sent:
            line = self._open()
        if line is None:
            return None
        try:
            if len(sent) == 1:
                line.begin_one(*sent[0])
            else:
                line.begin(sent)
        except WorkerLostError:
            self.kill()
            line.close()
            raise
        return Pipeline(self, line, runs, numbers, ended)

    def keep(self, line: Line) -> None:
        """Take a line back on which nothing is under way."""
        self._idle.append(line)
        if self._closed:  # perhaps just before the line came back
            self.close()

    def _line(self) -> Line:
        return self._idle_line() or self._open()

    def _idle_line(self) -> Line | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _open(self) -> Line:
        ours, theirs = packets.pair()
        number = next(self._lines)
        try:
            with theirs, self._opening:
                command = packets.COMMAND.pack(packets.OPEN, number)
                packets.await_room(self._control, limits.WORKER_HEEDS_S)
                packets.send(self._control, [command], theirs.fileno(), wait=True)
        except OSError:  # it ended, or hears no more
            self.kill()
            ours.close()
            raise WorkerLostError from None
        return Line(ours, self._answer_max, self.pace, number)

    def cancel(self, number: int) -> None:
        """Have a run end at its next operator, if the worker hears; never blocks."""
        self._tell(packets.CANCEL, number)

    def split(self, number: int) -> None:
        """Have one more thread do what has not begun on a line, likewise."""
        self._tell(packets.SPLIT, number)

    def _tell(self, what: int, number: int) -> None:
        with contextlib.suppress(OSError):
            self._control.send(packets.COMMAND.pack(what, number), socket.MSG_DONTWAIT)

    def kill(self) -> None:
        """End the process, whatever it does; its runs raise WorkerLostError."""
        self._spawner.kill(self._number)

    def dismiss(self) -> None:
        """End the process because nobody needs it any more, and give all descriptors back.

        Never blocks: a finaliser may call it, wherever it happens to run.
        """
        self._dismissed = True
        self._spawner.kill(self._number, wait=False)  # without its control it ends by itself, too
        self.close()

    def close(self) -> None:
        """Give back the descriptors of a worker that has no run under way."""
        self._closed = True
        self._control.close()
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _has_ended(self, status: int) -> None:
        self._gone = True
        if not self._dismissed:
            if not self._loading:
                self.close()
            self._on_end(self, status)
