"""Decisions without input or output: what a client wants done next, and how each kind does it.

A *course of steps* is a generator. It decides, yields what it wants done, and is sent the outcome;
it ends by returning its result or raising. `Client` and `AsyncClient` drive the same courses, so
that neither decides anything by itself.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar

from casemate import limits
from casemate.errors import Code, RequestError

if TYPE_CHECKING:
    from casemate.client.core import Inference
    from casemate.errors import CasemateError
    from casemate.wire import Buffer

T = TypeVar("T")

LARGE: Final = limits.MIB  # from it on work on bytes gets a thread: some 0.2 ms
_LONGEST_S: Final = (
    365 * 86_400.0
)  # what is longer means as long: clocks of libraries end somewhere


class Connection(Protocol):
    """A channel to one host; ``call`` returns the answer's bytes, or an awaitable of them."""

    @property
    def target(self) -> str:
        """The host's address, for error texts."""
        ...

    def call(self, method: str, request: Buffer, timeout_s: float) -> Any:  # noqa: ANN401 - see above
        """Make one unary call; raises RequestError."""
        ...

    def stream(self, messages: Any, timeout_s: float) -> HostStream:  # noqa: ANN401 - see below
        """Begin a stream of ``messages``, which an event loop's connection awaits."""
        ...


class HostStream(Protocol):
    """A stream under way at the host."""

    def take(self) -> Any:  # noqa: ANN401 - as Connection.call
        """Return the next message of the answer, None after the last; raises RequestError."""
        ...

    def cancel(self) -> None:
        """End the call; whoever takes gets a RequestError."""
        ...


class Taker(Protocol):
    """Takes answers to several questions, and is woken once for those that came together."""

    def wake(self) -> None:
        """Take what has come."""
        ...


class Answers(Protocol):
    """Gets the answer to one question of a stream."""

    @property
    def piecewise(self) -> bool:
        """Whether it may have no room for a piece; otherwise it waits for nothing."""
        ...

    def begin(self) -> bool:
        """Tell whether the answer is still wanted; asked once, before the question is sent."""
        ...

    def answered(self, inference: Inference, *, final: bool) -> Any:  # noqa: ANN401 - see Connection
        """Take the answer or a piece of it, and wait, if ``piecewise``, until there is room."""
        ...

    @property
    def taker(self) -> Taker | None:
        """Who is to be told after one or several answers; None if each was told already."""
        ...

    def failed(self, error: CasemateError) -> None:
        """Take the reason why there is none, or no more of it; waits for nothing."""
        ...


@dataclass(slots=True)
class Ask:
    """Make a unary call; its outcome is the answer's bytes."""

    connection: Connection
    method: str
    request: Buffer
    timeout_s: float


@dataclass(slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(slots=True)
class Work(Generic[T]):
    """Run ``function``, which blocks or takes long: an event loop gives it a thread."""

    function: Callable[[], T]


@dataclass(slots=True)
class Alone(Generic[T]):
    """Take a course that no other call of this client takes at the same time."""

    course: Callable[[], Steps[T]]
    deadline: float  # seconds of time.monotonic


@dataclass(slots=True)
class Take:
    """Wait for a stream's next message; its outcome is as that of HostStream.take."""

    call: HostStream


@dataclass(slots=True)
class Give:
    """Hand over an answer of a stream, and wait while whoever takes it has no room."""

    answers: Answers
    inference: Inference
    final: bool


Effect: TypeAlias = "Ask | Pause | Work[Any] | Alone[Any] | Take | Give"
Steps: TypeAlias = Generator[Effect, Any, T]


def deadline_after(timeout_s: float) -> float:
    """Return when ``timeout_s`` seconds will have passed, in seconds of ``time.monotonic``.

    Raises RequestError (INVALID_ARGUMENT) for what is no finite number of at least 0.
    """
    try:
        usable = math.isfinite(timeout_s) and timeout_s >= 0
    except (TypeError, OverflowError):
        usable = False
    if not usable:
        detail = "timeout_s: a finite number of seconds, at least 0"
        raise RequestError(Code.INVALID_ARGUMENT, detail)
    return time.monotonic() + min(timeout_s, _LONGEST_S)


def remaining(deadline: float) -> float:
    """Return the seconds left; raises RequestError (DEADLINE_EXCEEDED) if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise RequestError(Code.DEADLINE_EXCEEDED, "the client's own deadline has passed")
    return left


def worked(size: int, function: Callable[[], T]) -> Steps[T]:
    """Run ``function``, on a thread of its own if it works on much."""
    if size < LARGE:
        return function()
    result: T = yield Work(function)
    return result


def _waited_too_long() -> RequestError:
    return RequestError(Code.DEADLINE_EXCEEDED, "another call is still verifying")


class Driver:
    """Takes courses in the calling thread; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def run(self, course: Steps[T]) -> T:
        """Take ``course`` to its end; returns and raises what it does."""
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
        finally:
            course.close()

    def _perform(self, effect: Effect) -> Any:  # noqa: ANN401 - each effect has its own outcome
        match effect:
            case Ask():
                return effect.connection.call(effect.method, effect.request, effect.timeout_s)
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
            case Take(call):
                return call.take()
            case Give(answers, inference, final):
                return answers.answered(inference, final=final)


class AsyncDriver:
    """Takes courses on the running event loop; safe for any number of tasks of one loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def run(self, course: Steps[T]) -> T:
        """Take ``course`` to its end; returns and raises what it does.

        A task that is cancelled meanwhile cancels its call to the host too.
        """
        try:
            effect = next(course)
            while True:
                try:
                    outcome = await self._performed(effect)
                except Exception as error:  # noqa: BLE001 - the course decides what to do about it
                    effect = course.throw(error)
                else:
                    effect = course.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            course.close()

    def _performed(self, effect: Effect) -> Any:  # noqa: ANN401 - an awaitable of each effect's outcome
        match effect:
            case Ask():
                return effect.connection.call(effect.method, effect.request, effect.timeout_s)
            case Pause(seconds):
                return asyncio.sleep(seconds)
            case Work(function):
                return asyncio.to_thread(function)
            case Alone(course, deadline):
                return self._alone(course, deadline)
            case Take(call):
                return call.take()
            case Give(answers, inference, final):
                return answers.answered(inference, final=final)

    async def _alone(self, course: Callable[[], Steps[T]], deadline: float) -> T:
        try:
            async with asyncio.timeout(remaining(deadline)):
                await self._lock.acquire()
        except TimeoutError:
            raise _waited_too_long() from None
        try:
            return await self.run(course())
        finally:
            self._lock.release()
