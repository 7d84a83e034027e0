"""Takes streams in: in the order of SPEC 6.4 up to the window, then every outcome is sealed."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from casemate import limits
from casemate.envelope.messages import INFER, Preamble, Trailer
from casemate.envelope.sealed_chunks import parse_chunks
from casemate.errors import CasemateError, Code, RequestError
from casemate_enclave.service import check_asker
from casemate_enclave.shares import Shares
from casemate_enclave.stream_answers import Answering
from casemate_enclave.stream_memory import StreamMemory
from casemate_enclave.stream_places import StreamPlaces
from casemate_enclave.streams import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate_enclave.events import Journal
    from casemate_enclave.identity import Identity
    from casemate_enclave.receipts import ReceiptIssuer
    from casemate_enclave.registry import ModelRegistry
    from casemate_enclave.service import OpenedHead, RequestService
    from casemate_enclave.stream_link import StreamLink


class StreamService:
    """Answers streams, each on its connection's thread; thread-safe."""

    def __init__(
        self,
        memory_bytes: int,
        *,
        requests: RequestService,
        models: ModelRegistry,
        identity: Identity,
        receipts: ReceiptIssuer,
        journal: Journal,
    ) -> None:
        """``memory_bytes``: what the questions of all streams may hold at a time."""
        self._memory = StreamMemory(memory_bytes, models.listing)
        self._places = StreamPlaces(listing=models.listing)
        self._streams = Shares(limits.STREAMS_OPEN_MAX, models.listing)
        self._requests = requests
        self._models = models
        self._identity = identity
        self._receipts = receipts
        self._journal = journal
        self._lock = threading.Lock()
        self._open = 0

    def serve(self, payload: memoryview, link: StreamLink, deadline: float) -> None:
        """Answer the stream that begins with ``payload``, to its end.

        Raises CasemateError with a code of SPEC 11.1 for a stream that was not accepted or does not
        open, HungUpError when the host went away.
        """
        raw_header, chunks = parse_chunks(payload, first=True)
        if not chunks:
            raise CasemateError(Code.MALFORMED, "a stream begins with a chunk")
        with self._slot():
            stream = Stream(link, self._memory, deadline, self._journal)
            try:
                self._answer(stream, raw_header, chunks, deadline)
            finally:  # also of a stream that does not open or was seen before
                stream.release()
            link.finish()

    def _answer(
        self, stream: Stream, raw_header: bytes, chunks: list[memoryview], deadline: float
    ) -> None:
        head = self._requests.open_stream(raw_header, chunks[0], stream.take, deadline)
        stream.belong(head.owner)  # while it waits for questions it holds nothing
        answer = head.stream.answer(self._identity.instance_digest)
        if not self._streams.try_take(head.owner):
            detail = "the caller has its share of the streams"
            stream.refuse(answer, Trailer(Code.OVERLOADED, detail), 0)
            return
        try:
            outcome = self._answering(head)
            if isinstance(outcome, Answering):
                stream.run(head.stream, chunks[1:], answer, outcome)
            else:
                stream.refuse(answer, *outcome)
        finally:
            self._streams.free(head.owner)

    def _answering(self, head: OpenedHead) -> Answering | tuple[Trailer, int]:
        """Return what answers the stream, or why nothing does and the bucket for saying so."""
        model = None
        try:
            preamble = _usable(head.preamble)
            model = self._models.find(preamble.model, preamble.version)
            check_asker(model, preamble, head.caller)
        except RequestError as refusal:
            if model is None:
                return Trailer(refusal.code, refusal.detail), 0
            trailer = model.trailer._replace(status=refusal.code, detail=refusal.detail)
            return trailer, model.header.answer_bucket
        return Answering(
            model,
            places=self._places,
            owner=head.owner,
            served=lambda: self._models.serves(model),
            th=head.stream.th,
            receipts=self._receipts if preamble.receipt else None,
            journal=self._journal,
        )

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        with self._lock:
            if self._open >= limits.STREAMS_OPEN_MAX:
                raise CasemateError(Code.OVERLOADED, "too many streams")
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1


def _usable(preamble: Preamble | None) -> Preamble:
    if preamble is None:
        raise RequestError(Code.INVALID_REQUEST, "the preamble cannot be read")
    if preamble.sealed_data is not None or preamble.operation != INFER:
        raise RequestError(Code.INVALID_REQUEST, "a stream runs a model on its own messages")
    return preamble
