"""grpc.health.v1 over a closed set of names.

A servicer of our own, small: a watch of a name that nobody ever set holds no state here, and a
caller who leaves at once leaves no waiting worker behind.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2

from casemate.errors import CasemateError
from casemate_host.status import abort

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_host.admission import Slots

SERVICE: Final = "grpc.health.v1.Health"
OVERALL: Final = ""
_LOOK_S: Final = 1.0  # how long a watch may outlive its caller

_Response = health_pb2.HealthCheckResponse


class Health:
    """Serving or not, by name; unknown names are NOT_FOUND, also for watches.

    Watches hold one of ``streams`` each, for as long as they last.
    """

    def __init__(self, streams: Slots) -> None:
        self._streams = streams
        self._changed = threading.Condition()
        self._serving: dict[str, bool] = {OVERALL: False}
        self._ended = False

    def set(self, name: str, *, serving: bool) -> None:
        """State whether ``name`` serves."""
        with self._changed:
            self._serving[name] = serving and not self._ended
            self._changed.notify_all()

    def end(self) -> None:
        """State for good that nothing serves any more, and end the watches."""
        with self._changed:
            self._ended = True
            self._serving = dict.fromkeys(self._serving, False)
            self._changed.notify_all()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the service's methods."""
        reader = health_pb2.HealthCheckRequest.FromString
        writer = _Response.SerializeToString
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, reader, writer),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, reader, writer),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        return _response(serving=self._look(request.service, context))

    def _watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        try:
            with self._streams.slot():
                yield from self._states(request.service, context)
        except CasemateError as error:
            abort(context, error)

    def _states(
        self, name: str, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        told: bool | None = None
        while context.is_active():
            serving = self._look(name, context)
            if serving is not told:
                yield _response(serving=serving)
                told = serving
            if self._ended and not told:
                return
            self._wait_change(name, told)

    def _wait_change(self, name: str, told: bool) -> None:  # noqa: FBT001 - the state is the value
        with self._changed:
            self._changed.wait_for(lambda: self._serving[name] is not told, _LOOK_S)

    def _look(self, name: str, context: grpc.ServicerContext) -> bool:
        serving = self._serving.get(name)
        if serving is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service name")
        return bool(serving)


def _response(*, serving: bool) -> health_pb2.HealthCheckResponse:
    return _Response(status=_Response.SERVING if serving else _Response.NOT_SERVING)
