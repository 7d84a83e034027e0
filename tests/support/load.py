"""Load from one process: sealed requests over gRPC, all ends of all calls kept by request id."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.errors import Code
from casemate.tensors import to_request
from tests.support.attacker import start_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casemate.envelope.sealing import SealedCall
    from casemate_devkit.local import LocalDeployment

_INFER = "/casemate.v1.ConfidentialInference/Infer"
_CHANNELS = 8
_SESSIONS = 8  # so that requests that overtake each other stay within each one's replay window
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """A sealed request, ready to be sent; offsets within its header (SPEC 5.1)."""

    ID_AT: ClassVar[int] = 2
    ID_BYTES: ClassVar[int] = 16
    COMMITMENT_AT: ClassVar[int] = 86

    id: bytes
    commitment: bytes
    message: bytes
    call: SealedCall


@dataclass(slots=True)
class Load:
    """Every call of one load; times in milliseconds."""

    sent: list[bytes] = field(default_factory=list)
    answered: dict[bytes, float] = field(default_factory=dict)
    answers: dict[bytes, bytes] = field(default_factory=dict)
    refused: dict[bytes, Code | str] = field(default_factory=dict)
    refused_ms: list[float] = field(default_factory=list)
    without_hint: int = 0
    wall_s: float = 0.0

    @property
    def p50_ms(self) -> float:
        """The median of the answered calls."""
        return statistics.median(self.answered.values())

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the answered calls."""
        return statistics.quantiles(self.answered.values(), n=100)[98]

    @property
    def refused_p50_ms(self) -> float:
        """The median of the refused calls."""
        return statistics.median(self.refused_ms)


def sealed_requests(world: LocalDeployment, count: int) -> list[Request]:
    """Seal ``count`` requests in turn under a few sessions."""
    sessions = [start_session(world, lifetime_ms=290_000) for _ in range(min(_SESSIONS, count))]
    question = to_request({"x": np.zeros((1, 1), np.float32)})
    requests = []
    for number in range(count):
        call = sessions[number % len(sessions)].seal(question)
        begin, end = Request.ID_AT, Request.ID_AT + Request.ID_BYTES
        commitment = call.header[Request.COMMITMENT_AT :][:32]
        message = b"".join(encode_sealed(call.header, call.ciphertext))
        requests.append(Request(call.header[begin:end], commitment, message, call))
    return requests


def not_ok(load: Load, requests: Sequence[Request]) -> int:
    """Open every answer of ``load``; return how many of them say anything but OK inside."""
    opened = (
        request.call.open(*parse_sealed(memoryview(load.answers[request.id])))
        for request in requests
        if request.id in load.answers
    )
    return sum(answer.trailer.status is not Code.OK for answer in opened)


class _Sender:
    """Sends over a few connections and notes how each call ended."""

    def __init__(self, target: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.insecure_channel(target, options) for _ in range(_CHANNELS)]
        for channel in self._channels:
            grpc.channel_ready_future(channel).result(10)
        self._calls: list[Any] = [channel.unary_unary(_INFER) for channel in self._channels]
        self._done = threading.Condition()
        self._open = 0
        self.load = Load()

    def send(self, request: Request) -> None:
        """Send without waiting for the answer."""
        with self._done:
            self._open += 1
        self.load.sent.append(request.id)
        call = self._calls[len(self.load.sent) % _CHANNELS]
        begun = time.perf_counter()
        future = call.future(request.message, timeout=_TIMEOUT_S)
        future.add_done_callback(lambda ended: self._ended(request.id, begun, ended))

    def _ended(self, request_id: bytes, begun: float, future: Any) -> None:  # noqa: ANN401 - gRPC's
        took_ms = (time.perf_counter() - begun) * 1000
        with self._done:
            self._open -= 1
            self._done.notify()
            if future.code() is grpc.StatusCode.OK:
                self.load.answered[request_id] = took_ms
                self.load.answers[request_id] = future.result()
                return
            reason, hint = _reason(future)
            self.load.refused[request_id] = reason
            self.load.refused_ms.append(took_ms)
            self.load.without_hint += not hint

    def wait(self, at_most: int) -> None:
        """Wait until no more than ``at_most`` calls are under way."""
        with self._done:
            self._done.wait_for(lambda: self._open <= at_most, _TIMEOUT_S)

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            channel.close()


def closed(target: str, requests: Sequence[Request], at_once: int) -> Load:
    """Send all, ``at_once`` at a time."""
    sender = _Sender(target)
    begun = time.perf_counter()
    for request in requests:
        sender.wait(at_once - 1)
        sender.send(request)
    sender.wait(0)
    sender.load.wall_s = time.perf_counter() - begun
    sender.close()
    return sender.load


def offered(target: str, requests: Sequence[Request], rate: float) -> Load:
    """Send ``rate`` a second, whatever comes back."""
    sender = _Sender(target)
    gc.disable()  # a pause of the load's own would be a burst at the service
    try:
        begun = time.perf_counter()
        for request, due in zip(requests, _times(rate), strict=False):
            ahead = begun + due - time.perf_counter()
            if ahead > 0:
                time.sleep(ahead)
            sender.send(request)
        sender.load.wall_s = time.perf_counter() - begun
        sender.wait(0)
    finally:
        gc.enable()
    sender.close()
    return sender.load


def _times(rate: float) -> Iterator[float]:
    number = 0
    while True:
        yield number / rate
        number += 1


def _reason(call: Any) -> tuple[Code | str, bool]:  # noqa: ANN401 - gRPC's
    """The reason code, or the bare gRPC status; and whether there is a hint when to come back."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    status = rpc_status.from_call(call)
    details = list(status.details) if status is not None else []
    reason = next((info.reason for detail in details if detail.Unpack(info)), "")
    hinted = any(detail.Unpack(retry) for detail in details)
    return (Code(reason) if reason else f"gRPC {call.code().name}"), hinted
