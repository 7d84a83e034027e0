"""The gRPC connection to a host that need not be trusted (SPEC 9.5, 9.6).

Whatever arrives here is the host's word. TLS, where configured, keeps third parties from seeing
sizes and timing; confidentiality does not rest on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from casemate import limits
from casemate.attestation import EvidenceBundle
from casemate.client.access import HostAccess
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.errors import CLEAR_CODES, Code, RequestError
from casemate.v1.confidential_inference_pb2 import GetEvidenceRequest

if TYPE_CHECKING:
    from types import TracebackType

    _Method = grpc.UnaryUnaryMultiCallable[bytes, bytes]

_SERVICE = "/casemate.v1.ConfidentialInference/"
_OPTIONS = [
    ("grpc.max_receive_message_length", limits.FRAME_MAX),
    ("grpc.max_send_message_length", limits.FRAME_MAX),
    # One connection for each client, so that a restarted host is found again at once.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
_BY_STATUS = {
    grpc.StatusCode.DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Code.OVERLOADED,
    grpc.StatusCode.CANCELLED: Code.UNAVAILABLE,
}


class HostConnection:
    """One gRPC channel; thread-safe."""

    def __init__(self, target: str, access: HostAccess | None = None) -> None:
        """Connect lazily to ``host:port``; raises RequestError(INVALID_ARGUMENT)."""
        access = access or HostAccess()
        self._channel = access.channel(target, _OPTIONS)
        self._metadata = access.metadata
        self._target = target
        self._get_evidence: _Method = self._channel.unary_unary(_SERVICE + "GetEvidence")
        self._infer: _Method = self._channel.unary_unary(_SERVICE + "Infer")

    def get_evidence(
        self, nonce: bytes | None, timeout_s: float, instance: bytes | None = None
    ) -> EvidenceBundle:
        """Fetch evidence, fresh for ``nonce`` or as the host holds it; raises RequestError.

        ``instance``: the H(instance_config) whose evidence is wanted, else UNKNOWN_INSTANCE.
        """
        request = GetEvidenceRequest(nonce=nonce, instance_config_digest=instance)
        return EvidenceBundle.parse(
            self._call(self._get_evidence, request.SerializeToString(), timeout_s)
        )

    def infer(
        self, header: bytes, ciphertext: bytes | bytearray | memoryview, timeout_s: float
    ) -> tuple[bytes, memoryview]:
        """Send a sealed request; return the sealed answer's header and ciphertext."""
        request = b"".join(encode_sealed(header, ciphertext))
        return parse_sealed(memoryview(self._call(self._infer, request, timeout_s)))

    def _call(self, method: _Method, request: bytes, timeout_s: float) -> bytes:
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _translate(error, self._target) from None

    def close(self) -> None:
        """Close the channel; calls under way fail."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _translate(error: grpc.RpcError, target: str) -> RequestError:
    """Give the reason code that the host states, or the nearest one to its gRPC status."""
    info = _error_info(error)
    if info is not None:
        return info
    status = error.code()
    code = _BY_STATUS.get(status, Code.HOST_UNREACHABLE)
    return RequestError(code, f"{target}: {status.name}: {_printable(error.details() or '')}")


def _printable(text: str) -> str:
    """What the host says may reach a terminal: nothing in it may steer one."""
    cut = text[: limits.DETAIL_MAX]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _error_info(error: grpc.RpcError) -> RequestError | None:
    try:
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            info = ErrorInfo()
            if detail.Unpack(info) and info.domain == "casemate" and info.reason in CLEAR_CODES:
                message = status.message.removeprefix(f"{info.reason}: ")
                return RequestError(Code(info.reason), _printable(message))
    except (ValueError, DecodeError):
        return None  # an inconsistent status: judged by its gRPC code alone
    return None
