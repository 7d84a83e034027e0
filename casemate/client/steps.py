"""Decisions without input or output: what a client wants done next, and how each kind does it.

A *course of steps* is a generator. It decides, yields what it wants done, and is sent the outcome;
it ends by returning its result or raising. `Client` and `AsyncClient` drive the same courses, so
that neither decides anything by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from casemate.errors import Code, RequestError

T = TypeVar("T")


class Connection(Protocol):
    """A channel to one host; ``call`` returns the answer's bytes, or an awaitable of them."""

    @property
    def target(self) -> str:
        """The host's address, for error texts."""
        ...

    def call(self, method: str, request: bytes, timeout_s: float) -> Any:  # noqa: ANN401 - see above
        """Make one unary call; raises RequestError."""
        ...

    def stream(self, messages: Iterator[bytes], timeout_s: float) -> Any:  # noqa: ANN401 - see above
        """Begin a stream; returns the messages of its answer, as HostCall does."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """Make a unary call; its outcome is the answer's bytes."""

    connection: Connection
    method: str
    request: bytes
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """Run ``function``, which blocks or takes long: an event loop gives it a thread."""

    function: Callable[[], T]


@dataclass(frozen=True, slots=True)
class Alone(Generic[T]):
    """Take a course that no other call of this client takes at the same time."""

    course: Callable[[], Steps[T]]
    deadline: float  # seconds of time.monotonic


Effect: TypeAlias = "Ask | Pause | Work[Any] | Alone[Any]"
Steps: TypeAlias = Generator[Effect, Any, T]


def remaining(deadline: float) -> float:
    """Return the seconds left; raises RequestError (DEADLINE_EXCEEDED) if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise RequestError(Code.DEADLINE_EXCEEDED, "the client's own deadline has passed")
    return left


def _waited_too_long() -> RequestError:
    return RequestError(Code.DEADLINE_EXCEEDED, "another call is still verifying")


class Driver:
    """Takes courses in the calling thread; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def run(self, course: Steps[T]) -> T:
        """Take ``course`` to its end; returns and raises what it does."""
        with contextlib.closing(course):
            try:
                effect = next(course)
                while True:
                    try:
                        outcome = self._perform(effect)
                    except Exception as error:  # noqa: BLE001 - the course decides what to do about it
                        effect = course.throw(error)
                    else:
                        effect = course.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result

    def _perform(self, effect: Effect) -> Any:  # noqa: ANN401 - each effect has its own outcome
        match effect:
            case Ask(connection, method, request, timeout_s):
                return connection.call(method, request, timeout_s)
            case Pause(seconds):
                return time.sleep(seconds)
            case Work(function):
                return function()
            case Alone(course, deadline):
                if not self._lock.acquire(timeout=remaining(deadline)):
                    raise _waited_too_long()
                try:
                    return self.run(course())
                finally:
                    self._lock.release()


class AsyncDriver:
    """Takes courses on the running event loop; safe for any number of tasks of one loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def run(self, course: Steps[T]) -> T:
        """Take ``course`` to its end; returns and raises what it does.

        A task that is cancelled meanwhile cancels its call to the host too.
        """
        with contextlib.closing(course):
            try:
                effect = next(course)
                while True:
                    try:
                        outcome = await self._perform(effect)
                    except Exception as error:  # noqa: BLE001 - the course decides what to do about it
                        effect = course.throw(error)
                    else:
                        effect = course.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result

    async def _perform(self, effect: Effect) -> Any:  # noqa: ANN401 - each effect has its own outcome
        match effect:
            case Ask(connection, method, request, timeout_s):
                return await connection.call(method, request, timeout_s)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Work(function):
                return await asyncio.to_thread(function)
            case Alone(course, deadline):
                try:
                    async with asyncio.timeout(remaining(deadline)):
                        await self._lock.acquire()
                except TimeoutError:
                    raise _waited_too_long() from None
                try:
                    return await self.run(course())
                finally:
                    self._lock.release()
