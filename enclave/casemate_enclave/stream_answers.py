"""One question of a stream, and the answers to it (SPEC 5.9, 8.9)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from casemate import limits
from casemate.envelope.messages import SEALED_STATUSES, Trailer
from casemate.errors import CasemateError, Code, RequestError
from casemate.tensors import response_pieces
from casemate_enclave.events import Step
from casemate_enclave.looping import pieces
from casemate_enclave.questions import Questions
from casemate_enclave.runs import Left, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casemate.tensors import InferRequest
    from casemate.wire import Buffer, Pieces
    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.events import Journal
    from casemate_enclave.receipts import ReceiptDraft, ReceiptIssuer
    from casemate_enclave.registry import ServedModel
    from casemate_enclave.runs import Outcome, Runs
    from casemate_enclave.runtime import Tensors
    from casemate_enclave.shares import Owner
    from casemate_enclave.stream_places import StreamPlaces

_FAILED: Final = "the request failed inside the enclave"


@dataclass(slots=True)  # frozen it would take four times as long to make
class StreamQuestion:
    """What one unit asks: ``messages`` from number ``unit`` on, one or several (SPEC 5.9.3).

    ``taken``: the bytes that it holds of the streams' memory.
    """

    unit: int
    messages: Sequence[memoryview] = field(repr=False)
    taken: int

    @property
    def count(self) -> int:
        """How many messages there are."""
        return len(self.messages)


@dataclass(slots=True)  # likewise
class Answered:
    """One unit of the answer to ``count`` messages, not sealed yet.

    As many ``messages``, each in pieces, or none unless it is OK.
    """

    messages: Sequence[Pieces] = field(repr=False)
    trailer: Trailer
    count: int = 1

    @property
    def size(self) -> int:
        """Bytes of the messages."""
        return sum([sum(map(len, message)) for message in self.messages])


class Asked(NamedTuple):
    """A question whose run is to be done; ``begun_ns`` of ``time.monotonic_ns``."""

    question: StreamQuestion
    steps: Runs[Answered]
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

    def after(self, outputs: Tensors | Exception) -> Asked | Answered:
        """Return the answer, or the same with another run that it needs."""
        steps = self.steps
        try:
            run = steps.throw(outputs) if isinstance(outputs, Exception) else steps.send(outputs)
        except StopIteration as end:
            answered: Answered = end.value
            return answered
        return self._replace(run=run)


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
    def most(self) -> int:
        """How many messages a unit may have (SPEC 5.9.3)."""
        return 1 if self._receipts else self._model.trailer.questions or 1

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
            while isinstance(asked, Asked):
                back, again = self.answer([(asked, Left.ALONE)])
                asked = again[0] if again else back[0][1]
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
        steps = self._steps(question, deadline, cancellation)
        try:
            run = next(steps)
        except StopIteration as end:
            refused: Answered = end.value
            return refused
        return Asked(question, steps, run, time.monotonic_ns())

    def answer(
        self, back: Sequence[tuple[Asked, Outcome]]
    ) -> tuple[list[tuple[StreamQuestion, Answered]], list[Asked]]:
        """Return answers to at least one question, now that their runs are over; never raises.

        And the questions that need another run. What came back without an outcome is run now.
        """
        done = [(asked, asked.outputs(outcome)) for asked, outcome in back]
        took_ns = time.monotonic_ns() - back[0][0].begun_ns
        answers: list[tuple[StreamQuestion, Answered]] = []
        again: list[Asked] = []
        for asked, outputs in done:
            after = asked.after(outputs)
            if isinstance(after, Asked):
                again.append(after)
            else:
                answers.append((asked.question, after))
        if answers:
            self._journal.ran(took_ns, len(answers))
        return answers, again

    def _steps(
        self, question: StreamQuestion, deadline: float, cancellation: Cancellation
    ) -> Runs[Answered]:
        """Answer all messages of ``question``; never raises."""
        try:
            self._check(deadline)
            if question.count > 1:
                questions = Questions(
                    *(self._model, question.messages, deadline, cancellation),
                    running=self._running,
                )
                messages = yield from questions.run()
                trailer = self.trailer(Code.OK, "", question.unit)
                return Answered(messages, trailer, question.count)
            request, deadline, draft = self._read(question, deadline)
            run = Run(self._running, request.inputs, request.outputs, deadline, cancellation)
            return self._answered(question, request, draft, (yield run), final=True)
        except Exception as error:  # noqa: BLE001 - as above
            return self._refused(error, question)

    def _pieces(
        self, question: StreamQuestion, deadline: float, cancellation: Cancellation
    ) -> Iterator[Answered]:
        self._check(deadline)
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

    def _check(self, deadline: float) -> None:
        if not self._served():
            raise RequestError(Code.UNKNOWN_MODEL, "the model was unloaded")
        if time.monotonic() >= deadline:
            raise RequestError(Code.DEADLINE_EXCEEDED, "the deadline passed before the model ran")

    def _read(
        self, question: StreamQuestion, deadline: float
    ) -> tuple[InferRequest, float, ReceiptDraft | None]:
        (message,) = question.messages
        asked = self._model.requests.read(message)
        if asked.timeout_us is not None:
            deadline = min(deadline, time.monotonic() + asked.timeout_us / 1_000_000)
        draft = self._receipts.draft(message) if self._receipts else None
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
        return Answered((message,), self._with_receipt(trailer, draft, message))

    def _refused(self, error: Exception, question: StreamQuestion) -> Answered:
        code, detail = Code.MODEL_FAILED, _FAILED
        if isinstance(error, CasemateError):
            code = error.code if error.code in SEALED_STATUSES else code
            detail = error.detail
        return Answered((), self.trailer(code, detail, question.unit), question.count)

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
