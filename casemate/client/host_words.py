"""What a host says of a call, as errors of this side (SPEC 9.5, 11); it may say anything."""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

from casemate import limits
from casemate.errors import CLEAR_CODES, Code, RequestError

_BY_STATUS: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Code.OVERLOADED,
    grpc.StatusCode.CANCELLED: Code.UNAVAILABLE,
}


def translated(error: grpc.RpcError, target: str) -> RequestError:
    """Give the reason code that the host states, or the nearest one to its gRPC status."""
    info = _error_info(error)
    if info is not None:
        return info
    status = error.code()
    code = _BY_STATUS.get(status, Code.HOST_UNREACHABLE)
    return RequestError(code, f"{target}: {status.name}: {printable(error.details() or '')}")


def printable(text: str) -> str:
    """What the host says may reach a terminal: nothing in it may steer one."""
    cut = text[: limits.DETAIL_MAX]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _error_info(error: grpc.RpcError) -> RequestError | None:
    """Return what the host states by ``ErrorInfo``, and ``RetryInfo`` where it has a wish."""
    reason, retry_after_s = None, None
    try:
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            info, retry = ErrorInfo(), RetryInfo()
            if detail.Unpack(info) and info.domain == "casemate" and info.reason in CLEAR_CODES:
                reason = Code(info.reason)
            if detail.Unpack(retry):
                retry_after_s = max(0.0, retry.retry_delay.ToNanoseconds() / 1e9)
    except (ValueError, DecodeError):
        return None  # an inconsistent status: judged by its gRPC code alone
    if status is None or reason is None:
        return None
    message = status.message.removeprefix(f"{reason}: ")
    return RequestError(reason, printable(message), retry_after_s)
