"""Several questions of one request: run together where they can be, answered each (SPEC 5.10).

Promise: what becomes of one question changes nothing for another. A joined run that fails is done
once more for each by itself, so that a failure is met by the question that it belongs to alone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.envelope.messages import SEALED_STATUSES
from casemate.envelope.questions import answered, refused
from casemate.errors import CasemateError, Code, RequestError
from casemate.tensors import response_pieces, response_shares
from casemate_enclave.batching import Joinable, gather, join, split
from casemate_enclave.runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate import wire
    from casemate.sealed_model import ModelHeader
    from casemate.tensors import InferRequest
    from casemate_enclave.cancellation import Cancellation
    from casemate_enclave.registry import ServedModel
    from casemate_enclave.runs import Runs, SharedModel
    from casemate_enclave.runtime import Tensors

# Failures of a joined run that may be one member's alone.
_SOMEBODYS: Final = frozenset({Code.INVALID_INPUT, Code.MODEL_FAILED})


def most_questions(header: ModelHeader) -> int:
    """Return how many questions one request for a model may hold."""
    serving = header.serving
    if serving.batch_rows is None or header.loop is not None:
        return 1
    rows = min(serving.batch_rows, serving.request_rows or serving.batch_rows)
    bucket = max(limits.UNIT_MIN, header.answer_bucket)
    return max(1, min(limits.QUESTIONS_MAX, rows, limits.QUESTIONS_ANSWERS // bucket))


def _refused(error: CasemateError) -> wire.Pieces:
    code = error.code if error.code in SEALED_STATUSES else Code.MODEL_FAILED
    return refused(code, error.detail)


def _until(request: InferRequest, until: float) -> float:
    if request.timeout_us is None:
        return until
    return min(until, time.monotonic() + request.timeout_us / 1_000_000)


class _Question(Joinable):
    """One that is to run, with its place in the request."""

    __slots__ = ("place", "request")

    def __init__(
        self, place: int, request: InferRequest, rows: int, axis: int, until: float
    ) -> None:
        until = _until(request, until)
        super().__init__(request.inputs, request.outputs, until, rows=rows, axis=axis)
        self.place = place
        self.request = request


class Questions:
    """Those of one request, and their answers."""

    def __init__(
        self,
        model: ServedModel,
        messages: Sequence[memoryview],
        deadline: float,
        context: Cancellation | None,
        running: SharedModel | None = None,
    ) -> None:
        """``running``: the model as it is to be run, if not as requests run it."""
        self._model = model
        self._running = running or model.loaded
        self._deadline = deadline
        self._context = context
        self._messages = messages
        self._apart = False  # a run of all has failed
        self._answers: dict[int, wire.Pieces] = {}

    def run(self, meanwhile: Callable[[], None] | None = None) -> Runs[list[wire.Pieces]]:
        """Run them; returns one answer for each, in their order. Never raises RequestError."""
        answers = yield from self._run_alike(meanwhile)
        if answers is not None:
            return answers
        serving = self._model.header.serving
        most = serving.batch_rows or 1
        if serving.request_rows is not None:  # in a run together they are one request's
            most = min(most, serving.request_rows)
        waiting = self._read()
        while waiting:
            leader, *others = waiting
            apart = self._apart
            together = [leader] if apart else gather(leader, others, most, time.monotonic())
            yield from self._run(together, meanwhile)
            waiting = [question for question in waiting if question not in together]
        return [self._answers[place] for place in range(len(self._answers))]

    def _run_alike(self, meanwhile: Callable[[], None] | None) -> Runs[list[wire.Pieces] | None]:
        """Run questions that differ in numbers alone, as all mostly do, without taking them apart.

        None, and nothing else has become of them, if they are not like that or it fails for what
        may be one's fault.
        """
        request, count = self._read_alike(), len(self._messages)
        if request is None:
            return None
        until, header = _until(request, self._deadline), self._model.header
        inputs = {
            name: array.reshape(-1, *array.shape[2:]) for name, array in request.inputs.items()
        }
        rows = len(next(iter(inputs.values())))
        try:
            outputs = yield Run(
                *(self._running, inputs, request.outputs, until, self._context, meanwhile)
            )
        except RequestError as error:
            self._apart = error.code in _SOMEBODYS
            return None if self._apart else [_refused(error)] * count
        shares = response_shares(outputs, (rows, count), header.name, header.version, request.id)
        if shares is None:
            self._apart = True
            return None
        if self._context is not None:
            self._context.hold([piece for share in shares for piece in share])
        return [answered(share) for share in shares]

    def _read_alike(self) -> InferRequest | None:
        """Return what all ask together, each input with an axis for them before that of rows."""
        serving, count = self._model.header.serving, len(self._messages)
        try:
            request = self._model.requests.read_alike(self._messages)
        except RequestError:
            return None
        if request is None or serving.batch_dimension != 0:
            return None
        shapes = {array.shape[1:2] for array in request.inputs.values()}
        rows = sum(shapes.pop()) if len(shapes) == 1 else 0
        most = min(serving.batch_rows or 1, serving.request_rows or limits.BATCH_ROWS_MAX)
        size = sum([array.nbytes for array in request.inputs.values()])
        fit = 0 < count * rows <= most and size <= limits.BATCH_BYTES_MAX
        return request if fit else None

    def _read(self) -> list[_Question]:
        """Return those that can run; the others are refused."""
        model, waiting = self._model, []
        axis = model.header.serving.batch_dimension or 0
        for place, message in enumerate(self._messages):
            try:
                request = model.requests.read(message)
                rows = model.loaded.rows(request.inputs)
            except RequestError as error:
                self._answers[place] = _refused(error)
            else:
                waiting.append(_Question(place, request, rows or 0, axis, self._deadline))
        return waiting

    def _run(self, together: list[_Question], meanwhile: Callable[[], None] | None) -> Runs[None]:
        if len(together) == 1:
            yield from self._run_alone(together[0])
            return
        axis = self._model.header.serving.batch_dimension or 0
        until = min([question.deadline for question in together])
        inputs = join(together, axis)
        try:
            outputs = yield Run(
                self._running, inputs, together[0].outputs, until, self._context, meanwhile
            )
            answers = split(outputs, together, axis)
        except RequestError as error:
            if error.code not in _SOMEBODYS:
                for question in together:
                    self._answers[question.place] = _refused(error)
                return
            answers = None
        if answers is None:
            for question in together:
                yield from self._run_alone(question)
            return
        for question, answer in zip(together, answers, strict=True):
            self._answer(question, answer)

    def _run_alone(self, question: _Question) -> Runs[None]:
        inputs, outputs, until = question.inputs, question.outputs, question.deadline
        try:
            answer = yield Run(self._running, inputs, outputs, until, self._context)
        except RequestError as error:
            self._answers[question.place] = _refused(error)
        else:
            self._answer(question, answer)

    def _answer(self, question: _Question, outputs: Tensors) -> None:
        header = self._model.header
        message = response_pieces(outputs, header.name, header.version, question.request.id)
        if self._context is not None:
            self._context.hold(message)
        self._answers[question.place] = answered(message)
