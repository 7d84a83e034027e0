"""A service in one process, honest unless told otherwise: gRPC front, evidence, opening side.

The client under test talks to it over a real channel. What a lying host can change, a test changes
by replacing one of the hooks.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from casemate.attestation import InstanceConfig, KeyConfig, encode_log
from casemate.envelope import questions
from casemate.envelope.header import parse_request_header
from casemate.envelope.hpke import KemKey
from casemate.envelope.messages import Trailer
from casemate.envelope.opening import (
    check_commitment,
    encode_sealed,
    open_request,
    parse_sealed,
    seal_response,
    verify_caller,
)
from casemate.envelope.receipt import BlindedHash, ReceiptStatement, sign_receipt
from casemate.errors import CasemateError, Code
from casemate.tensors import TensorSpec, read_request, to_response
from casemate.v1.confidential_inference_pb2 import GetEvidenceRequest
from casemate.wire import digest
from tests.support import evidence as made
from tests.support.nitro_pki import NOW

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.attestation import EvidenceBundle
    from casemate.envelope.opening import OpenedRequest

SPEC = (TensorSpec("x", "FP32", (0,)),)


def doubled(message: memoryview) -> bytes:
    """What the model makes of a question."""
    inputs, *_ = read_request(message, SPEC, SPEC)
    return to_response({"x": np.asarray(inputs["x"] * 2)}, "wdbc", 2)


class Service:
    """Doubles float32 vectors; counts what it was asked."""

    def __init__(self) -> None:
        self.kem = KemKey.generate()
        self.key_config = KeyConfig(
            self.kem.public_bytes, NOW - made.HOUR, NOW + made.HOUR
        ).encode()
        self.instance = InstanceConfig(b"\x07" * 16, NOW - made.HOUR, "process", made.RECEIPT_KEY)
        self.log = [made.LOADED]
        self.on_evidence: Callable[[EvidenceBundle], EvidenceBundle] = lambda bundle: bundle
        self.on_request: Callable[[bytes], bytes] = self.answer
        self.trailer = Trailer(Code.OK, "", "wdbc", 2, made.MODEL_DIGEST)
        self.data_key: bytes | None = None  # what KMS would release, in key mode kms
        self.checks_instance = True
        self.evidence_calls = 0
        self.requests: list[bytes] = []
        self.callers: list[bytes | None] = []
        self.message: Callable[[memoryview], bytes] = doubled
        self.questions: list[int] = []  # in each request
        self.parts: Callable[[list[bytes]], list[bytes]] = lambda same: same  # of several questions
        self.answered_at = NOW + 1000  # in receipts
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers([self._handlers()])
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _handlers(self) -> grpc.GenericRpcHandler:
        methods = {"GetEvidence": self._get_evidence, "Infer": self._infer}
        return grpc.method_handlers_generic_handler(
            "casemate.v1.ConfidentialInference",
            {name: grpc.unary_unary_rpc_method_handler(do) for name, do in methods.items()},
        )

    def bundle(self, nonce: bytes | None) -> EvidenceBundle:
        unsigned = replace(
            made.unsigned(),
            key_configs=(self.key_config,),
            instance_config=self.instance.encode(),
            measurement_log=encode_log(self.log),
        )
        return made.attested(unsigned, nonce=nonce)

    def _get_evidence(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        asked = GetEvidenceRequest.FromString(request)
        wanted = asked.instance_config_digest
        if self.checks_instance and wanted and wanted != digest(self.instance.encode()):
            unknown = CasemateError(Code.UNKNOWN_INSTANCE, "another instance")
            context.abort_with_status(rpc_status.to_status(status_of(unknown)))
        self.evidence_calls += 1
        nonce = asked.nonce if asked.HasField("nonce") else None
        try:
            return self.on_evidence(self.bundle(nonce)).serialize()
        except CasemateError as error:
            context.abort_with_status(rpc_status.to_status(status_of(error)))
            raise

    def _infer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.requests.append(request)
        try:
            return self.on_request(request)
        except CasemateError as error:
            context.abort_with_status(rpc_status.to_status(status_of(error)))
            raise

    def answer(self, request: bytes) -> bytes:
        raw, ciphertext = parse_sealed(memoryview(request))
        header = parse_request_header(raw)
        data_key = self.data_key or self.kem.unwrap(header.encapsulation, self.key_config)
        opened = open_request(raw, ciphertext, check_commitment(header, data_key))
        self.callers.append(verify_caller(header, opened.preamble))
        self.questions.append(len(opened.messages))
        messages = []
        if self.trailer.status is Code.OK:
            messages = [*map(self.message, opened.messages)]
        trailer = self.trailer
        if opened.preamble.receipt and messages:
            trailer = trailer._replace(**self._receipt(opened, messages[0]))
        if len(messages) > 1:
            messages = self.parts([b"".join(questions.answered([m])) for m in messages])
        sealed = seal_response(
            opened,
            instance_digest=digest(self.instance.encode()),
            messages=messages,
            trailer=trailer,
            floor=0,
        )
        return b"".join(encode_sealed(*sealed))

    def _receipt(self, opened: OpenedRequest, message: bytes) -> dict[str, Any]:
        blinders = {"question_blinder": b"q" * 32, "answer_blinder": b"a" * 32}
        statement = ReceiptStatement(
            instance_digest=digest(self.instance.encode()),
            model="wdbc",
            version=2,
            digest=made.MODEL_DIGEST,
            request_digest=opened.th,
            question_hash=BlindedHash("question", b"q" * 32).add(opened.message).digest(),
            answer_hash=BlindedHash("answer", b"a" * 32).add(message).digest(),
            time=self.answered_at,
        )
        return blinders | {"receipt": sign_receipt(made.RECEIPTS, statement)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()


def status_of(error: CasemateError) -> status_pb2.Status:
    """What a host answers with ``error`` (SPEC 9.5)."""
    infos: list[Any] = [error_details_pb2.ErrorInfo(domain="casemate", reason=str(error.code))]
    wish = getattr(error, "retry_after_s", None)
    if wish is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(wish * 1e9))
        infos.append(error_details_pb2.RetryInfo(retry_delay=delay))
    details = [any_pb2.Any() for _ in infos]
    for packed, info in zip(details, infos, strict=True):
        packed.Pack(info)
    return status_pb2.Status(
        code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message=error.detail, details=details
    )
