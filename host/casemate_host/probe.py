"""``python -m casemate_host.probe HOST:PORT``: whether a host serves, for whoever starts it.

Exit status 0: SERVING; 1: anything else, or no answer.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2

from casemate_host.health import SERVICE

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEOUT_S: Final = 5.0
_Response = health_pb2.HealthCheckResponse


def serving(target: str, timeout_s: float = _TIMEOUT_S) -> bool:
    """Whether ``target`` says SERVING for the service as a whole; a plaintext channel."""
    with grpc.insecure_channel(target) as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Check")
        try:
            answer = _Response.FromString(check(b"", timeout=timeout_s))
        except grpc.RpcError:
            return False
    return bool(answer.status == _Response.SERVING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe the one target that is named."""
    targets = sys.argv[1:] if arguments is None else list(arguments)
    if len(targets) != 1:
        sys.stderr.write("usage: python -m casemate_host.probe HOST:PORT\n")
        return 2
    return 0 if serving(targets[0]) else 1


if __name__ == "__main__":
    sys.exit(main())
