"""``GetEvidence``: what the host holds, or a new document for the caller's nonce (SPEC 9.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType
from casemate.v1 import confidential_inference_pb2 as pb
from casemate.wire import HASH_BYTES, digest
from casemate_host.admission import Slots

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc

    from casemate_host.call import Call
    from casemate_host.callers import Caller
    from casemate_host.desk import Desk
    from casemate_host.relay import Relay
    from casemate_host.standing import Board
    from casemate_host.workers import Workers

_REQUEST_MAX: Final = 1024


class EvidenceService:
    """Shows evidence; each caller has a share of the fresh documents."""

    def __init__(self, desk: Desk, relay: Relay, board: Board, workers: Workers) -> None:
        self._workers = workers
        self._desk = desk
        self._relay = relay
        self._board = board
        self._fresh = Slots(limits.EVIDENCE_CALLS_MAX)

    def serve(
        self, caller: Caller | None, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> bytes:
        """Answer one call."""

        def answer(call: Call) -> tuple[bytes, int]:
            known = self._desk.known(caller, context)
            call.of(known.name, known.unread)
            with known.asking():
                data = self._desk.receive(messages, context, _REQUEST_MAX, self._workers)
                return self._evidence(data, call, known), len(data)

        return self._desk.serve("GetEvidence", context, answer)

    def _evidence(self, data: bytes, call: Call, caller: Caller) -> bytes:
        nonce, wanted = _read(data)
        self._board.invite(wanted)
        if nonce is None:
            held = self._board.require()
            _check_instance(wanted, held.instance_digest)
            return held.data
        caller.evidence.take()
        with self._fresh.slot():
            evidence = self._relay.exchange(FrameType.EVIDENCE, nonce, call)
        if wanted is not None:
            _check_instance(wanted, digest(pb.Evidence.FromString(evidence).instance_config))
        return evidence


def _read(data: bytes) -> tuple[bytes | None, bytes | None]:
    """Return (nonce, instance_config_digest); raises CasemateError(MALFORMED)."""
    try:
        request = pb.GetEvidenceRequest.FromString(data)
    except DecodeError:
        raise CasemateError(Code.MALFORMED, "not a GetEvidenceRequest") from None
    nonce = request.nonce if request.HasField("nonce") else None
    if nonce is not None and not limits.NONCE_MIN <= len(nonce) <= limits.NONCE_MAX:
        bounds = f"{limits.NONCE_MIN} to {limits.NONCE_MAX}"
        raise CasemateError(Code.MALFORMED, f"nonce of {len(nonce)} bytes, not {bounds}")
    wanted = request.instance_config_digest if request.HasField("instance_config_digest") else None
    if wanted is not None and len(wanted) != HASH_BYTES:
        raise CasemateError(Code.MALFORMED, f"instance_config_digest of {len(wanted)} bytes")
    return nonce, wanted


def _check_instance(wanted: bytes | None, present: bytes) -> None:
    if wanted is not None and wanted != present:
        raise CasemateError(Code.UNKNOWN_INSTANCE, "this host serves another instance")
