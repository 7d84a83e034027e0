"""One question of a stream, and the answers to it (SPEC 5.9, 8.9)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from casemate import limits
from casemate.envelope.messages import SEALED_STATUSES, Trailer
from casemate.errors import CasemateError, Code, RequestError
from casemate.tensors import response_pieces
from casemate_enclave.events import Step
from casemate_enclave.looping import pieces
from casemate_enclave.runs import Left, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casemate.tensors import InferRequest
    from casemate.wire import Buffer
    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.events import Journal
    from casemate_enclave.receipts import ReceiptDraft, ReceiptIssuer
    from casemate_enclave.registry import ServedModel
    from casemate_enclave.runs import Outcome
    from casemate_enclave.runtime import Tensors
    from casemate_enclave.shares import Owner
    from casemate_enclave.stream_places import StreamPlaces


@dataclass(slots=True)  # frozen it would take four times as long to make
class StreamQuestion:
    """The message of one unit; ``taken``: the bytes that it holds of the streams' memory."""

    unit: int
    message: memoryview = field(repr=False)
    taken: int


@dataclass(slots=True)  # likewise
class Answered:
    """One unit of the answer, not sealed yet; its message in pieces, none unless it is OK."""

    message: Sequence[Buffer] = field(repr=False)
    trailer: Trailer

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return sum(map(len, self.message))


class Asked(NamedTuple):
    """A question whose run is to be done; ``begun_ns`` of ``time.monotonic_ns``."""

    question: StreamQuestion
    request: InferRequest
    draft: ReceiptDraft | None
    run: Run
    begun_ns: int

    def outputs(self, outcome: Outcome) -> Tensors | Exception:
        """Return what became of the run, which is done now if it is still to be done."""
        if not isinstance(outcome, Left):
            return outcome
        try:
            return self.run.alone(repeated=outcome is Left.LOST)
        except Exception as error:  # noqa: BLE001 - it is the answer's to handle
            return error


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

    @property
    def quick(self) -> bool:
        """Whether answers take so little time that no other thread is worth its wake."""
        return self._model.header.loop is None and self._running.quick

    def together(self) -> int:
        """How many questions are best answered at once: of quick runs, or of those that join."""
        joins = self._model.header.serving.batch_rows is not None
        return limits.TOGETHER_MAX if self.quick or joins else 1

    def answers(
        self, question: StreamQuestion, deadline: float, cancellation: Cancellation
    ) -> Iterator[Answered]:
        """Yield the answers to ``question``, the last one final; never raises."""
        if self._model.header.loop is None:
            asked = self.ask(question, deadline, cancellation)
            if isinstance(asked, Asked):
                ((_, asked),) = self.answer([(asked, Left.ALONE)])
            yield asked
            return
        try:
            yield from self._pieces(question, deadline, cancellation)
        except Exception as error:  # noqa: BLE001 - whatever it is, the host does not learn that it happened
            yield self._refused(error, question)

    def ask(
        self, question: StreamQuestion, deadline: float, cancellation: Cancellation
    ) -> Asked | Answered:
        """Return a question with the run that it needs, or its refusal; never raises.

        For models that answer in one piece.
        """
        try:
            request, deadline, draft = self._read(question, deadline)
        except Exception as error:  # noqa: BLE001 - as above
            return self._refused(error, question)
        run = Run(self._running, request.inputs, request.outputs, deadline, cancellation)
        return Asked(question, request, draft, run, time.monotonic_ns())

    def answer(
        self, back: Sequence[tuple[Asked, Outcome]]
    ) -> list[tuple[StreamQuestion, Answered]]:
        """Return the answers to at least one question, now that their runs are over; never raises.

        What came back without an outcome is run now.
        """
        done = [(asked, asked.outputs(outcome)) for asked, outcome in back]
        self._journal.ran(time.monotonic_ns() - back[0][0].begun_ns, len(back))
        return [(asked.question, self._answer(asked, outputs)) for asked, outputs in done]

    def _answer(self, asked: Asked, outputs: Tensors | Exception) -> Answered:
        question, request, draft, _, _ = asked
        try:
            if isinstance(outputs, Exception):
                return self._refused(outputs, question)
            return self._answered(question, request, draft, outputs, final=True)
        except Exception as error:  # noqa: BLE001 - as above
            return self._refused(error, question)

    def _pieces(
        self, question: StreamQuestion, deadline: float, cancellation: Cancellation
    ) -> Iterator[Answered]:
        asked, deadline, draft = self._read(question, deadline)
        steps = pieces(
            *(self._running, self._model.header.loop, asked.inputs, asked.outputs),
            deadline=deadline,
            cancellation=cancellation,
        )
        final = False
        while not final:
            with self._journal.timed(Step.RUN):
                outputs, final = next(steps)
            yield self._answered(question, asked, draft, outputs, final=final)

    def _read(
        self, question: StreamQuestion, deadline: float
    ) -> tuple[InferRequest, float, ReceiptDraft | None]:
        if not self._served():
            raise RequestError(Code.UNKNOWN_MODEL, "the model was unloaded")
        if time.monotonic() >= deadline:
            raise RequestError(Code.DEADLINE_EXCEEDED, "the deadline passed before the model ran")
        asked = self._model.requests.read(question.message)
        if asked.timeout_us is not None:
            deadline = min(deadline, time.monotonic() + asked.timeout_us / 1_000_000)
        draft = self._receipts.draft(question.message) if self._receipts else None
        return asked, deadline, draft

    def _answered(
        self,
        question: StreamQuestion,
        asked: InferRequest,
        draft: ReceiptDraft | None,
        outputs: Tensors,
        *,
        final: bool,
    ) -> Answered:
        header = self._model.header
        message = response_pieces(outputs, header.name, header.version, asked.id)
        trailer = self.trailer(Code.OK, "", question.unit, final=final)
        return Answered(message, self._with_receipt(trailer, draft, message))

    def _refused(self, error: Exception, question: StreamQuestion) -> Answered:
        code, detail = Code.MODEL_FAILED, "the request failed inside the enclave"
        if isinstance(error, CasemateError):
            code = error.code if error.code in SEALED_STATUSES else code
            detail = error.detail
        return Answered((), self.trailer(code, detail, question.unit))

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
        header, digest = self._model.header, self._model.digest
        questions = self._model.trailer.questions
        return Trailer(
            *(code, detail, header.name, header.version, digest, unit, final), questions=questions
        )
