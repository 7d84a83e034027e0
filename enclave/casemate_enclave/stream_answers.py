"""One question of a stream, and the answers to it (SPEC 5.9, 8.9)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casemate.envelope.messages import SEALED_STATUSES, Trailer
from casemate.errors import CasemateError, Code, RequestError
from casemate.tensors import response_pieces
from casemate_enclave.events import Step
from casemate_enclave.looping import pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casemate.wire import Buffer
    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.events import Journal
    from casemate_enclave.receipts import ReceiptDraft, ReceiptIssuer
    from casemate_enclave.registry import ServedModel
    from casemate_enclave.shares import Owner
    from casemate_enclave.stream_places import StreamPlaces


@dataclass(frozen=True, slots=True)
class StreamQuestion:
    """The message of one unit; ``taken``: the bytes that it holds of the streams' memory."""

    unit: int
    message: memoryview = field(repr=False)
    taken: int


@dataclass(frozen=True, slots=True)
class Answered:
    """One unit of the answer, not sealed yet; its message in pieces, none unless it is OK."""

    message: Sequence[Buffer] = field(repr=False)
    trailer: Trailer

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return sum(map(len, self.message))


class Answering:
    """Runs the one model of a stream on its questions; thread-safe."""

    def __init__(
        self,
        model: ServedModel,
        *,
        places: StreamPlaces,
        owner: Owner,
        served: Callable[[], bool],
        th: bytes,
        receipts: ReceiptIssuer | None,
        journal: Journal,
    ) -> None:
        """``served`` says whether the model still is; with ``receipts`` each answer has one."""
        self._model = model
        self._running = places.waiting(model.loaded, owner)
        self._served = served
        self._th = th
        self._receipts = receipts
        self._journal = journal

    @property
    def floor(self) -> int:
        """The model's answer bucket."""
        return self._model.header.answer_bucket

    def answers(
        self, question: StreamQuestion, deadline: float, cancellation: Cancellation
    ) -> Iterator[Answered]:
        """Yield the answers to ``question``, the last one final; never raises."""
        try:
            yield from self._run(question, deadline, cancellation)
        except CasemateError as refusal:
            sealed = refusal.code in SEALED_STATUSES
            code = refusal.code if sealed else Code.MODEL_FAILED
            yield Answered((), self.trailer(code, refusal.detail, question.unit))
        except Exception:  # noqa: BLE001 - whatever it is, the host does not learn that it happened
            detail = "the request failed inside the enclave"
            yield Answered((), self.trailer(Code.MODEL_FAILED, detail, question.unit))

    def _run(
        self, question: StreamQuestion, deadline: float, cancellation: Cancellation
    ) -> Iterator[Answered]:
        header = self._model.header
        if not self._served():
            raise RequestError(Code.UNKNOWN_MODEL, "the model was unloaded")
        if time.monotonic() >= deadline:
            raise RequestError(Code.DEADLINE_EXCEEDED, "the deadline passed before the model ran")
        asked = self._model.requests.read(question.message)
        if asked.timeout_us is not None:
            deadline = min(deadline, time.monotonic() + asked.timeout_us / 1_000_000)
        draft = self._receipts.draft(question.message) if self._receipts else None
        steps = pieces(
            *(self._running, header.loop, asked.inputs, asked.outputs),
            deadline=deadline,
            cancellation=cancellation,
        )
        while True:
            with self._journal.timed(Step.RUN):
                outputs, final = next(steps)
            message = response_pieces(outputs, header.name, header.version, asked.id)
            trailer = self.trailer(Code.OK, "", question.unit, final=final)
            yield Answered(message, self._with_receipt(trailer, draft, message))
            if final:
                return

    def _with_receipt(
        self, trailer: Trailer, draft: ReceiptDraft | None, message: Sequence[Buffer]
    ) -> Trailer:
        """Take a message into the receipt, which is signed when the answer is complete."""
        if draft is None or self._receipts is None:
            return trailer
        draft.add(*message)
        if not trailer.final:
            return trailer
        return self._receipts.sign(draft, self._model, self._th).within(trailer)

    def trailer(self, code: Code, detail: str, unit: int, *, final: bool = True) -> Trailer:
        """Return a trailer that names the model."""
        header = self._model.header
        return Trailer(code, detail, header.name, header.version, self._model.digest, unit, final)
