"""Threads that serve calls: as many as are needed, up to a bound, and no longer than they are."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from casemate import limits

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Task:
    """One call and what tells of its end."""

    __slots__ = ("_call", "future")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self._call = call

    def run(self) -> None:
        """Run it, unless it was cancelled; never raises."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 - whoever has the future learns of it
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Free:
    """A thread without a call: what it is given next, None to end, and what wakes it."""

    __slots__ = ("task", "wake")

    def __init__(self) -> None:
        self.task: _Task | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


class Workers(ThreadPoolExecutor):
    """Threads for one kind of call, with a count of the calls that hold or await one.

    The number of the base class's threads only grows. Here the one that became free last serves the
    next call, and one that nobody needed for ``limits.THREAD_IDLE_S`` ends.
    """

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count, thread_name_prefix=name)
        self.count = count
        self._name = name
        self._held = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._awaiting = 0  # those who wait until no call is left
        self._alive = 0
        self._free: list[_Free] = []
        self._waiting: deque[_Task] = deque()
        self._over = False

    @property
    def taken(self) -> int:
        """Calls submitted and not ended."""
        return self._held

    @property
    def full(self) -> bool:
        """Whether a further call would have to wait for a thread."""
        return self._held >= self.count

    @property
    def threads(self) -> int:
        """How many there are at present."""
        return self._alive

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """As the base class, and counted until it ends."""
        task = _Task(lambda: fn(*args, **kwargs))
        with self._changed:
            if self._over:
                raise RuntimeError("no calls after the shutdown")
            self._give(task)
            self._held += 1
        task.future.add_done_callback(self._ended)
        return task.future

    def _give(self, task: _Task) -> None:
        """Have a thread run it, now or when one is free; the caller holds the lock."""
        if self._free:
            free = self._free.pop()
            free.task = task
            free.wake.release()
        elif self._alive < self.count:
            first = _Free()
            first.task = task
            threading.Thread(target=self._work, args=(first,), name=self._name, daemon=True).start()
            self._alive += 1
        else:
            self._waiting.append(task)

    def _work(self, first: _Free) -> None:
        task, first.task = first.task, None  # a thread keeps its arguments for as long as it lives
        while task is not None:
            task.run()
            task = None  # nor what it answered: the next call may be long in coming
            task = self._next()

    def _next(self) -> _Task | None:
        """Wait for a call; None if the thread is to end."""
        with self._changed:
            if self._waiting:
                return self._waiting.popleft()
            if self._over:
                self._gone()
                return None
            free = _Free()
            self._free.append(free)
        free.wake.acquire(timeout=limits.THREAD_IDLE_S)
        if free.task is None:
            with self._changed:
                if free in self._free:
                    self._free.remove(free)
                if free.task is None:  # it may have been given one just now
                    self._gone()
        return free.task

    def _gone(self) -> None:
        self._alive -= 1
        self._changed.notify_all()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the base class's
        """As the base class."""
        with self._changed:
            self._over = True
            dropped = list(self._waiting) if cancel_futures else []
            if cancel_futures:
                self._waiting.clear()
            for free in self._free:
                free.wake.release()
            self._free.clear()
        for task in dropped:
            task.future.cancel()
        if wait:
            with self._changed:
                self._changed.wait_for(lambda: not self._alive)

    def hold(self) -> None:
        """Count a call that needs no thread, until ``let_go``."""
        with self._lock:
            self._held += 1

    def hold_all(self, count: int) -> bool:
        """``hold`` for ``count`` calls; False, and none is counted, if that is too many."""
        with self._lock:
            if self._held + count > self.count:
                return False
            self._held += count
            return True

    def let_go(self, count: int = 1) -> None:
        """Count ``count`` calls without a thread no longer."""
        with self._lock:
            self._held -= count
            if not self._held and self._awaiting:
                self._changed.notify_all()

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until no call is left; False when ``timeout_s`` passed first."""
        with self._changed:
            self._awaiting += 1
            try:
                return self._changed.wait_for(lambda: self._held == 0, timeout_s)
            finally:
                self._awaiting -= 1

    def _ended(self, _future: Future[Any]) -> None:
        self.let_go()
