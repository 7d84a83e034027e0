"""Reason codes as gRPC statuses (SPEC 9.5, 11.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.v1.confidential_inference_pb2 import Refusal
from casemate_host.admission import ShedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

DOMAIN: Final = "casemate"
_DELAY_MAX: Final = (1 << 32) - 1

_STATUS: Final[Mapping[Code, grpc.StatusCode]] = {
    Code.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNSUPPORTED_VERSION: grpc.StatusCode.INVALID_ARGUMENT,
    Code.WRONG_AUDIENCE: grpc.StatusCode.INVALID_ARGUMENT,
    Code.OPEN_FAILED: grpc.StatusCode.INVALID_ARGUMENT,
    Code.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.QUOTA_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.UNKNOWN_KEY: grpc.StatusCode.FAILED_PRECONDITION,
    Code.STALE_SESSION: grpc.StatusCode.FAILED_PRECONDITION,
    Code.EXPIRED: grpc.StatusCode.FAILED_PRECONDITION,
    Code.NOT_CONFIGURED: grpc.StatusCode.FAILED_PRECONDITION,
    Code.ALREADY_CONFIGURED: grpc.StatusCode.FAILED_PRECONDITION,
    Code.UNKNOWN_INSTANCE: grpc.StatusCode.NOT_FOUND,
    Code.REPLAYED: grpc.StatusCode.ABORTED,
    Code.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.KEY_RELEASE_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.CLOCK_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.KEY_RELEASE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}


def status_code(code: Code) -> grpc.StatusCode:
    """Return the gRPC status of ``code``: the table of SPEC 11.4, INTERNAL for all others."""
    return _STATUS.get(code, grpc.StatusCode.INTERNAL)


def to_status(error: CasemateError) -> grpc.Status:
    """Return ``error`` as a status with ErrorInfo, and with RetryInfo where nothing was executed.

    The detail is cut to its bound.
    """
    detail = error.detail[: limits.DETAIL_MAX]
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=str(error.code), domain=DOMAIN)]
    retry_s = _retry_s(error)
    if retry_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(retry_s * 1000) or 1)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(
        code=status_code(error.code).value[0],
        message=f"{error.code}: {detail}",
        details=[_pack(item) for item in details],
    )
    result: grpc.Status = rpc_status.to_status(status)
    return result


def to_refusal(error: CasemateError) -> Refusal:
    """Return ``error`` as it is told of one request of a stream (SPEC 9.6.2); see ``to_status``."""
    retry_s = _retry_s(error)
    return Refusal(
        reason=str(error.code),
        detail=error.detail[: limits.DETAIL_MAX],
        retry_delay=0 if retry_s is None else min(int(retry_s * 1000) or 1, _DELAY_MAX),
    )


def abort(context: grpc.ServicerContext, error: CasemateError) -> NoReturn:
    """End the call with ``error`` (see ``to_status``)."""
    context.abort_with_status(to_status(error))
    raise AssertionError  # abort_with_status never returns


def _retry_s(error: CasemateError) -> float | None:
    """A shed call's own hint; a usual one for an enclave that is overloaded."""
    if isinstance(error, ShedError):
        return error.retry_s
    return limits.RETRY_S if error.code is Code.OVERLOADED else None


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
