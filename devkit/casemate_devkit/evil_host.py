"""A host that lies: relays a genuine host, but swaps what it is told to swap."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import grpc

from casemate.attestation import EvidenceBundle, KeyConfig

if TYPE_CHECKING:
    from types import TracebackType

    from casemate.envelope.hpke import KemKey

_SERVICE = "casemate.v1.ConfidentialInference"


class EvilHost:
    """Serves ``key`` in place of the enclave's own, beside otherwise genuine evidence."""

    def __init__(self, genuine: str, *, key: KemKey) -> None:
        self._key = key
        self._channel = grpc.insecure_channel(genuine)
        self._genuine: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{_SERVICE}/GetEvidence"
        )
        self.requests = 0
        self._server = grpc.server(ThreadPoolExecutor(2))
        methods = {"GetEvidence": self._get_evidence, "Infer": self._infer}
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    _SERVICE,
                    {name: grpc.unary_unary_rpc_method_handler(do) for name, do in methods.items()},
                )
            ]
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.target = f"127.0.0.1:{port}"
        self._server.start()

    def _get_evidence(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        del context
        bundle = EvidenceBundle.parse(self._genuine(request))
        current = KeyConfig.parse(bundle.key_configs[-1])
        forged = replace(current, public_key=self._key.public_bytes).encode()
        return replace(bundle, key_configs=(forged,)).serialize()

    def _infer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.requests += 1
        del request
        context.abort(grpc.StatusCode.INTERNAL, "received a request that it could open")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(None).wait()
        self._channel.close()
