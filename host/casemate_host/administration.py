"""The administration service: a gRPC server of its own, on a unix socket of the operator's.

Whoever may write to the socket may do all of this, and nobody else: it is made readable and
writable by its owner alone. Nothing here is reachable through the front.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.v1 import administration_pb2 as pb
from casemate_host.events import describe, log
from casemate_host.status import abort

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from casemate_host.control import Control, LoadedModel
    from casemate_host.standing import Board
    from casemate_host.supervisor import Supervisor

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Administration"].full_name
_WORKERS: Final = 4  # a load takes minutes; status must be there meanwhile


class Administration:
    """Serves ``casemate.v1.Administration`` until it is stopped."""

    def __init__(
        self, socket: Path, control: Control, board: Board, supervisor: Supervisor
    ) -> None:
        """``control``: a connection of its own, so that a load holds up nothing else."""
        self._socket = socket
        self._control = control
        self._board = board
        self._supervisor = supervisor
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="administration")
        self._server = grpc.server(self._pool, maximum_concurrent_rpcs=_WORKERS)
        methods = {
            "GetStatus": _method(pb.GetStatusRequest, self._status),
            "ListModels": _method(pb.ListModelsRequest, self._list),
            "LoadModel": _method(pb.LoadModelRequest, self._load),
            "ReplaceModel": _method(pb.ReplaceModelRequest, self._replace),
            "UnloadModel": _method(pb.UnloadModelRequest, self._unload),
            "Drain": _method(pb.DrainRequest, self._drain),
        }
        handler = grpc.method_handlers_generic_handler(SERVICE, methods)
        self._server.add_generic_rpc_handlers((handler,))

    def start(self) -> None:
        """Listen; raises CasemateError(UNAVAILABLE)."""
        _remove(self._socket)
        mask = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{self._socket}")
        except RuntimeError:
            detail = f"cannot listen on {self._socket}"
            raise CasemateError(Code.UNAVAILABLE, detail) from None
        finally:
            os.umask(mask)
        self._server.start()

    def stop(self) -> None:
        """End; a change under way is cut."""
        self._control.interrupt()
        self._server.stop(0).wait()
        self._pool.shutdown(wait=True)
        with contextlib.suppress(OSError):
            _remove(self._socket)

    def _status(self, _: pb.GetStatusRequest) -> pb.HostStatus:
        standing = self._board.standing
        status = pb.HostStatus(
            serving=standing.serving,
            draining=standing.draining,
            code=standing.code,
            detail=standing.detail,
        )
        if standing.evidence is not None:
            status.instance_digest = standing.evidence.instance_digest
            status.evidence_verified_at = standing.evidence.verified_at
        return status

    def _list(self, _: pb.ListModelsRequest) -> pb.ListModelsResponse:
        loaded = self._control.models()
        answer = pb.ListModelsResponse(held_bytes=loaded.held, most_bytes=loaded.most)
        for stated in loaded.models:
            answer.models.append(_loaded(stated.model, stated.size))
        for path, failure in self._supervisor.models.files():
            answer.files.append(pb.ModelFile(path=str(path), failure=failure or ""))
        return answer

    def _load(self, request: pb.LoadModelRequest) -> pb.LoadedModel:
        return self._loaded(request.path, None)

    def _replace(self, request: pb.ReplaceModelRequest) -> pb.LoadedModel:
        return self._loaded(request.path, request.replaces)

    def _loaded(self, text: str, replaces: int | None) -> pb.LoadedModel:
        path = Path(text)
        if not path.is_absolute():
            raise CasemateError(Code.INVALID_ARGUMENT, "the path must be absolute")
        try:
            model = self._supervisor.models.load(self._control, path, replaces)
        except OSError as error:
            detail = f"the file cannot be read: {error.strerror}"
            raise CasemateError(Code.INVALID_ARGUMENT, detail) from None
        finally:
            self._supervisor.models_changed()
        return _loaded(model, 0)

    def _unload(self, request: pb.UnloadModelRequest) -> pb.UnloadModelResponse:
        self._supervisor.models.unload(self._control, request.name, request.version)
        self._supervisor.models_changed()
        log.info("model_unloaded", model=request.name, version=request.version)
        return pb.UnloadModelResponse()

    def _drain(self, request: pb.DrainRequest) -> pb.DrainResponse:
        until = self._control.drain(min(request.within_ms / 1000, limits.ADMIN_DRAIN_MAX_S))
        self._supervisor.nudge()
        return pb.DrainResponse(until=until)


def _remove(path: Path) -> None:
    """Remove a socket of an earlier start; any other file is its owner's."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_socket():
            path.unlink()


def _loaded(model: LoadedModel, size: int) -> pb.LoadedModel:
    return pb.LoadedModel(
        name=model.name, version=model.version, digest=model.digest, size_bytes=size
    )


def _method(
    request_type: Any,  # noqa: ANN401 - a class of protobuf messages
    answer: Callable[[Any], Message],
) -> grpc.RpcMethodHandler[Any, Any]:
    def serve(request: Message, context: grpc.ServicerContext) -> bytes:
        try:
            return answer(request).SerializeToString()
        except CasemateError as error:
            abort(context, error)
        except Exception as error:  # noqa: BLE001 - a fault here must not end the service
            log.error("internal_error", method="administration", **describe(error))
            abort(context, CasemateError(Code.INTERNAL, "internal error"))

    return grpc.unary_unary_rpc_method_handler(serve, request_type.FromString)
