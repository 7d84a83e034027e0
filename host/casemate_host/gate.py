"""Where calls are refused: in the thread that accepts them, before a worker is taken.

gRPC hands every new call to an interceptor in its one accepting thread. What is decided here costs
no change of threads, so a flood of refusals leaves the workers to the calls that were let in. Each
kind of call has its own workers; a call beyond their number is not queued.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import grpc

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_host.admission import ShedError
from casemate_host.status import abort, to_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate_host.admission import Patience
    from casemate_host.callers import Caller, Callers
    from casemate_host.workers import Workers

    # (caller, or None if its certificate is still to be looked at; messages; context)
    Behavior = Callable[[Caller | None, Iterator[bytes], grpc.ServicerContext], Any]
    Counted = Callable[[str, Code, str | None], None]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_B = TypeVar("_B", bound="Callable[..., Any]")
_HINTS_S: Final = 0.05  # hints of a full house are rounded up to this: their statuses are reused


class _Here(ThreadPoolExecutor):
    """Runs what is submitted at once, in the submitting thread; for what never blocks."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        future: Future[_T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _on(pool: ThreadPoolExecutor, behavior: _B) -> _B:
    """Have gRPC run ``behavior`` in ``pool``, as its own health service does."""
    vars(behavior)["experimental_thread_pool"] = pool
    return behavior


class Route:
    """One guarded method: its name for the counts, its workers, and how its calls are served."""

    def __init__(
        self,
        name: str,
        workers: Workers,
        behavior: Behavior,
        *,
        response_streaming: bool = False,
        metered: bool = True,
    ) -> None:
        """``metered``: whether its calls count against the caller's rate, places and quota."""
        self.name = name
        self.workers = workers
        self.metered = metered
        self._behavior = behavior
        self._streaming = response_streaming

    def handler(self, caller: Caller | None) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return what serves one call of ``caller``, who has entered if the route is metered."""
        left = caller.leave if caller is not None and self.metered else None

        def run(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            try:
                result: bytes = self._behavior(caller, messages, context)
                return result
            finally:
                if left is not None:
                    left()

        def stream(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                yield from self._behavior(caller, messages, context)
            finally:
                if left is not None:
                    left()

        if self._streaming:
            return grpc.stream_stream_rpc_method_handler(_on(self.workers, stream))
        return grpc.stream_unary_rpc_method_handler(_on(self.workers, run))


class Gate(grpc.ServerInterceptor):
    """Lets a call through to its workers, or refuses it on the spot."""

    def __init__(
        self, callers: Callers, others: Workers, counted: Counted, patience: Patience
    ) -> None:
        """``others``: workers of methods without a route; ``counted``: told of refusals."""
        self._patience = patience
        self._callers = callers
        self._others = others
        self._counted = counted
        self._here = _Here(1)
        self._routes: dict[str, Route] = {}
        self._paces: dict[Workers, Pace] = {}
        self._statuses: dict[int, grpc.Status] = {}

    def add(self, method: str, route: Route) -> Pace:
        """Guard ``method`` (``/package.Service/Name``); return what its calls' ends are told to."""
        self._routes[method] = route
        return self._paces.setdefault(route.workers, Pace(route.workers))

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of one call, or one that refuses it here; never blocks."""
        route = self._routes.get(details.method)
        if route is None:
            if self._others.full:
                return self._refusal("other", self._full(limits.RETRY_S))
            return continuation(details)
        if route.workers.full:
            self._patience.press(route.workers)
            return self._refusal(route.name, self._full(self._paces[route.workers].wait_s()))
        try:
            caller = self._callers.claimed(details.invocation_metadata)
        except CasemateError as error:
            return self._refusal(route.name, error)
        try:
            if caller is not None and route.metered:
                caller.enter()
        except CasemateError as error:
            return self._refusal(route.name, error, caller)
        return route.handler(caller)

    def _refusal(
        self, name: str, error: CasemateError | grpc.Status, caller: Caller | None = None
    ) -> grpc.RpcMethodHandler[Any, Any]:
        def refuse(_messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            if isinstance(error, CasemateError):
                self._counted(name, error.code, caller.name if caller else None)
                abort(context, error)
            self._counted(name, Code.OVERLOADED, None)
            context.abort_with_status(error)
            raise AssertionError  # it never returns

        return grpc.stream_unary_rpc_method_handler(_on(self._here, refuse))

    def _full(self, wait_s: float) -> grpc.Status:
        """The status of a full house, made once for each hint: this is the flood's path."""
        hint = max(1, min(int(wait_s / _HINTS_S) + 1, int(limits.RETRY_MAX_S / _HINTS_S)))
        status = self._statuses.get(hint)
        if status is None:
            error = ShedError("too many calls at a time", hint * _HINTS_S)
            status = self._statuses[hint] = to_status(error)
        return status


class Pace:
    """How fast one kind of call ends, for the hint that a refused one is given."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._between_s = 0.0
        self._last = time.monotonic()

    def ended(self, count: int = 1) -> None:
        """Note that ``count`` calls were answered, at the same time."""
        now = time.monotonic()
        # Racing threads lose a sample, which a hint can bear.
        weight = 1 - 0.9**count
        self._between_s += weight * (min((now - self._last) / count, 1.0) - self._between_s)
        self._last = now

    def wait_s(self) -> float:
        """Return when half of those ahead will have ended, in seconds."""
        return self._between_s * self._workers.taken / 2
