"""A model that outlives its worker: started again when that ends, within bounds (SPEC 8.10).

Promise: a run is repeated once at most, and then with no other beside it, so that whichever ends
the worker a second time is found, and every other one is answered.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import CasemateError, Code, RequestError
from casemate_enclave.events import Counter, Event
from casemate_enclave.refusals import Failure, RunError
from casemate_enclave.workers.blame import Blame
from casemate_enclave.workers.line import WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.events import Journal
    from casemate_enclave.runs import Run
    from casemate_enclave.runtime import Meanwhile, Tensors
    from casemate_enclave.workers.pipeline import Pipeline
    from casemate_enclave.workers.process import Worker

    Ended = Callable[[Worker, int], None]


class Ends:
    """How often a model's worker ended of late, and what follows from it. Not thread-safe.

    Those that a run is known to be at fault for delay starts like any other, and count no further.
    """

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=limits.WORKER_ENDS_MAX)
        self._unexplained: deque[float] = deque(maxlen=limits.WORKER_ENDS_MAX)

    def add(self) -> None:
        """Note one, now."""
        self._times.append(time.monotonic())
        self._unexplained.append(self._times[-1])

    def explain(self, count: int) -> None:
        """Take it that the last ``count`` were a run's doing."""
        for _ in range(min(count, len(self._unexplained))):
            self._unexplained.pop()

    @property
    def too_many(self) -> bool:
        """Whether the model is out of service, until the first end of the window is over."""
        full = len(self._unexplained) == self._unexplained.maxlen
        return full and self._recent(self._unexplained) == len(self._unexplained)

    @property
    def pause_s(self) -> float:
        """How long to wait before the next start: not at all after a first end."""
        further = self._recent(self._times) - 2
        if further < 0:
            return 0.0
        return min(limits.WORKER_BACKOFF_S * 2.0**further, limits.WORKER_BACKOFF_MAX_S)

    @staticmethod
    def _recent(times: deque[float]) -> int:
        since = time.monotonic() - limits.WORKER_WINDOW_S
        return sum(at > since for at in times)


class WorkedModel:
    """A ``LoadedModel`` in a worker; thread-safe. When it is dropped, its worker ends."""

    def __init__(self, begin: Callable[[Ended], Worker], journal: Journal) -> None:
        """``begin`` starts a worker that has the model; raises RefusedError as it does."""
        self._begin = begin
        self._journal = journal
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._starting = False
        self._running = 0
        self._suspects = 0  # runs that are repeated, or wait for it
        self._alone = False
        self._ends = Ends()
        self._blame = Blame()
        # Apart from this object, which the finaliser must not hold.
        self._current: list[Worker] = []
        weakref.finalize(self, _dismiss, self._current)
        self._ended = _weak(self)
        self._current.append(begin(self._ended))

    @property
    def ready(self) -> bool:
        """False while the model is out of service."""
        with self._changed:
            return bool(self._current) or not self._ends.too_many

    def admit(self, owner: bytes | None) -> None:
        """As ``LastingModel``."""
        self._blame.check(owner)

    @property
    def quick(self) -> bool:
        """By its present worker's last runs."""
        for worker in self._current:
            return worker.pace.quick
        return False

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None = None,
        *,
        meanwhile: Meanwhile = None,
    ) -> Tensors:
        """Run; if the worker ends meanwhile, once more and alone. Raises as ``LoadedModel.run``.

        And RequestError(UNAVAILABLE) while the model is out of service.
        """
        worker = self._enter(deadline)
        try:
            return worker.run(inputs, outputs, deadline, cancellation, meanwhile)
        except WorkerLostError:
            self.lost(worker)
        finally:
            self._leave()
        return self.repeat(inputs, outputs, deadline, cancellation)

    def begin(
        self,
        runs: Sequence[Run],
        *,
        patient: bool = False,
        ended: Callable[[], None] | None = None,
    ) -> Pipeline | None:
        """As ``LastingModel``; None while there is no worker, or runs are repeated alone."""
        with self._lock:
            if self._suspects or not self._current:
                return None
            self._running += 1
            worker = self._current[0]
        pipeline = None
        try:
            back = functools.partial(self._back, worker, ended)
            pipeline = worker.begin(runs, back, patient=patient)
        except WorkerLostError:
            self.lost(worker)
        finally:
            if pipeline is None:
                self._leave()
        return pipeline

    def _back(self, worker: Worker, ended: Callable[[], None] | None, lost: bool) -> None:  # noqa: FBT001 - of a callback
        if lost:
            self.lost(worker)
        self._leave()
        if ended is not None:
            ended()

    def repeat(
        self,
        inputs: Tensors,
        outputs: Sequence[str],
        deadline: float,
        cancellation: Cancellation | None,
    ) -> Tensors:
        """Run alone what was under way when the worker ended; raises as ``run``."""
        if time.monotonic() >= deadline or (cancellation and cancellation.cancelled):
            self._excuse(deadline)
            raise RunError(Failure.STOPPED)
        worker = self._enter_alone(deadline)
        try:
            return worker.run(inputs, outputs, deadline, cancellation)
        except WorkerLostError:
            self.lost(worker)
            self._convict(deadline, cancellation)
        finally:
            self._leave_alone()
        raise RunError(Failure.STOPPED if time.monotonic() >= deadline else Failure.ENDED)

    def _excuse(self, deadline: float) -> None:
        """A run that did not end in time is why its worker was ended (SPEC 8.10.3)."""
        if time.monotonic() >= deadline + limits.WORKER_GRACE_S:
            with self._changed:
                self._ends.explain(1)

    def _convict(self, deadline: float, cancellation: Cancellation | None) -> None:
        """Hold a run to account that ended a worker alone, as it or others beside it did before."""
        with self._changed:
            self._ends.explain(2)
        if cancellation and time.monotonic() < deadline:  # else it was merely slow
            self._blame.add(cancellation.owner)

    # Who may run, on which worker

    def _enter(self, deadline: float) -> Worker:
        with self._lock:  # that of `_changed`, which costs more to take
            while self._suspects or not self._current:
                self._await(deadline)
            self._running += 1
            return self._current[0]

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1
            if self._suspects:
                self._changed.notify_all()

    def _enter_alone(self, deadline: float) -> Worker:
        with self._changed:
            self._suspects += 1
            try:
                while self._running or self._alone or not self._current:
                    self._await(deadline)
            except BaseException:
                self._clear_suspect()
                raise
            self._alone = True
            return self._current[0]

    def _leave_alone(self) -> None:
        with self._changed:
            self._alone = False
            self._clear_suspect()

    def _clear_suspect(self) -> None:
        self._suspects -= 1
        self._changed.notify_all()

    def _await(self, deadline: float) -> None:
        """Wait for a change; the caller holds the lock."""
        if not self._current and not self._starting:
            if self._ends.too_many:
                detail = "the model is out of service: its process ended too often"
                raise RequestError(Code.UNAVAILABLE, detail)
            self._start()
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not self._changed.wait(remaining):
            raise RunError(Failure.STOPPED)

    # Ends and starts

    def lost(self, worker: Worker) -> None:
        """Note that ``worker`` ended, and start another; later calls for it do nothing."""
        with self._changed:
            if worker not in self._current:
                return
            self._current.remove(worker)
            self._note_end()
            if not self._ends.too_many:
                self._start()
            self._changed.notify_all()

    def _note_end(self) -> None:
        self._journal.count(Counter.WORKERS_ENDED)
        self._ends.add()
        if self._ends.too_many:
            self._journal.emit(Event.MODEL_OUT_OF_SERVICE)

    def _start(self) -> None:
        """Have a thread start a worker; the caller holds the lock."""
        self._starting = True
        threading.Thread(target=self._start_again, name="restart", daemon=True).start()

    def _start_again(self) -> None:
        while True:
            time.sleep(self._ends.pause_s)
            try:
                worker = self._begin(self._ended)
            except CasemateError:
                worker = None
            with self._changed:
                if worker is not None:
                    self._current.append(worker)
                else:
                    self._note_end()
                if worker is not None or self._ends.too_many:
                    self._starting = False
                    self._changed.notify_all()
                    return


def _dismiss(current: list[Worker]) -> None:
    while current:
        current.pop().dismiss()


def _weak(model: WorkedModel) -> Ended:
    """Tell ``model`` of an end, if it still exists."""
    reference = weakref.ref(model)

    def ended(worker: Worker, _status: int) -> None:
        if (known := reference()) is not None:
            known.lost(worker)

    return ended
