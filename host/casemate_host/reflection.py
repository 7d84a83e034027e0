"""Server reflection, within the same bound on open streams as health watches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from casemate.errors import CasemateError
from casemate_host.status import abort

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_host.admission import Slots


def reflection_handler(names: tuple[str, ...], streams: Slots) -> grpc.GenericRpcHandler:
    """Describe the services ``names`` and this one; each stream holds one of ``streams``."""
    servicer = reflection.ReflectionServicer((*names, reflection.SERVICE_NAME))

    def info(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            with streams.slot():
                yield from servicer.ServerReflectionInfo(requests, context)
        except CasemateError as error:
            abort(context, error)

    method = grpc.stream_stream_rpc_method_handler(
        info,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME, {"ServerReflectionInfo": method}
    )
