"""What a stream decides, for threads and for event loops (SPEC 5.9).

`Stream` and `AsyncStream` wait, each in its own way; what is asked, sealed, opened, released and
refused is decided here, the receiving side as a course of `casemate.client.steps`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from casemate import limits, tensors
from casemate.client.models import split_version
from casemate.client.steps import LARGE, Give, Take, Work, deadline_after
from casemate.client.stream_answers import Asked, Released
from casemate.client.stream_sending import Sending, units_of
from casemate.envelope.failure import answer_open_failed
from casemate.envelope.sealed_chunks import parse_chunks
from casemate.errors import CasemateError, Code, EnvelopeError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from casemate.attestation import VerifiedEvidence
    from casemate.client.core import Answer, ClientCore, Inference
    from casemate.client.steps import Answers, Connection, HostStream, Steps
    from casemate.envelope.messages import Trailer
    from casemate.envelope.streaming import SealedStream

IN_FLIGHT: Final = 32  # half of what the enclave reads ahead
DEFAULT_TIMEOUT_S: Final = limits.CALL_BUDGET_MAX_S


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """Where a stream goes: its sealing, the way to the host, and what its answers are judged by."""

    sealed: SealedStream
    connection: Connection
    released: Released
    deadline: float  # seconds of time.monotonic
    # H(instance_config) -> evidence that was verified; raises EnvelopeError.
    answered_by: Callable[[bytes], Steps[VerifiedEvidence]]
    failed: Callable[[CasemateError], None]


def begin_stream(
    core: ClientCore, model: str, version: int | None, *, receipts: bool, timeout_s: float
) -> Steps[StreamPlace]:
    """Verify, pin the model and seal the opening of a stream; nothing of it is sent yet."""
    model, version = split_version(model, version)
    deadline = deadline_after(timeout_s)
    session, entry = yield from core.pinned(model, version, deadline)
    sealed = session.keys.seal_stream(
        model=model,
        version=entry.version,
        digest=entry.digest,
        receipt=receipts,
        lead=tensors.response_lead,
    )

    def failed(error: CasemateError) -> None:
        if isinstance(error, RequestError):
            core.forsake(error, session)

    return StreamPlace(
        sealed=sealed,
        connection=session.connection,
        released=Released(entry, sealed.header, session.together, receipt=receipts),
        deadline=deadline,
        answered_by=lambda instance: core.answered_by(session, instance, deadline),
        failed=failed,
    )


# An answer or a piece of one, or why there is none; whether it is the last.
_Opened: TypeAlias = "tuple[Asked, Inference | CasemateError, bool]"


class Room(Protocol):
    """Room for questions that are unanswered: a semaphore, of threads or of an event loop."""

    def release(self, n: int = 1) -> None:
        """Give ``n`` places back."""
        ...


def in_flight_bound(in_flight: int) -> int:
    """Return how many questions may be unanswered; raises RequestError (INVALID_ARGUMENT)."""
    if not 1 <= in_flight <= limits.STREAM_UNITS_MAX:
        detail = f"in_flight: not within 1 and {limits.STREAM_UNITS_MAX}"
        raise RequestError(Code.INVALID_ARGUMENT, detail)
    return in_flight


def no_room() -> RequestError:
    """Return what a question fails with that found no room in time."""
    return RequestError(Code.DEADLINE_EXCEEDED, "the deadline of the stream has passed")


def cancelled() -> RequestError:
    """Return what all that is unanswered fails with when a stream is cancelled."""
    return RequestError(Code.UNAVAILABLE, "the stream was cancelled")


class StreamCore:
    """The state of one stream. Its lock is held for moments only, and never while anything waits.

    Whoever asks takes room first, then ``admit``s the question; ``put`` hands it to the sender.
    """

    def __init__(
        self,
        place: StreamPlace,
        room: Room,
        put: Callable[[Asked | None], None],
        outputs: Sequence[str],
    ) -> None:
        self._place = place
        self._room = room
        self._put = put
        self._outputs = outputs
        self._lock = threading.Lock()
        self._open: set[Asked] = set()  # admitted and unanswered
        # Those of them that were sent, unit by unit, each by its first one's number.
        self._sent: dict[int, list[Asked]] = {}
        self._numbered = 0
        self._ended = False
        self._evidence: VerifiedEvidence | None = None
        self.failure: CasemateError | None = None

    # Asking

    def question(self, inputs: Mapping[str, np.ndarray], answers: Answers) -> Asked:
        """Return what asks about ``inputs``; raises RequestError."""
        if not inputs:
            raise RequestError(Code.INVALID_ARGUMENT, "no inputs")
        message = tensors.request_pieces(inputs, self._outputs)
        size = sum(map(len, message))
        if size > limits.STREAM_PART_MAX:
            raise RequestError(Code.TOO_LARGE, "a message has at most 4 GiB")
        rows = max([array.shape[0] if array.ndim else 1 for array in inputs.values()]) or 1
        return Asked(message, size, answers, rows)

    def admit(self, asked: Asked) -> None:
        """Have a question sent for which there is room; raises why not, and frees the room."""
        with self._lock:
            if self.failure is None and not self._ended:
                self._open.add(asked)
                self._put(asked)
                return
        self._room.release()
        raise self.failure or RequestError(Code.INVALID_ARGUMENT, "the stream was closed")

    def end(self) -> None:
        """Have the end sent: there are no more questions."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._put(None)

    def fail(self, error: CasemateError) -> None:
        """Tell all who wait why the stream is over; the first reason counts."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = error
            unanswered = [*self._open]
            self._open.clear()
            self._sent.clear()
        self._place.failed(error)
        for asked in unanswered:
            asked.answers.failed(error)
        self._room.release(limits.STREAM_UNITS_MAX)  # whoever waits for room learns of it

    # Sending

    def sending(self, in_flight: int) -> Sending:
        """Return what seals the messages to the host."""
        keep = self._place.released.receipt
        return Sending(self._place.sealed, self._register, in_flight, keep=keep)

    def _register(self, waiting: Sequence[Asked]) -> list[list[Asked]]:
        """Number questions that are about to be sent; return units of those that are wanted."""
        wanted = []
        with self._lock:
            for asked in waiting:
                if asked not in self._open:
                    continue
                if asked.answers.begin():
                    wanted.append(asked)
                else:
                    self._open.discard(asked)
                    self._room.release()
            units = units_of(wanted, self._place.released.most)
            for unit in units:
                self._sent[self._numbered] = unit
                self._numbered += len(unit)
        return units

    # Receiving

    def receive(self, call: HostStream) -> Steps[None]:
        """Take the whole answer; whatever ends it, all who wait hear of it and ``call`` is over."""
        try:
            yield from self._answers(call)
        except GeneratorExit:  # the task that took this course was cancelled
            self.fail(cancelled())
            raise
        except CasemateError as error:
            self.fail(error)
        except Exception:  # noqa: BLE001 - whatever it is, everybody who waits must hear of it
            self.fail(answer_open_failed())
        finally:
            call.cancel()
            self._put(None)  # the sender ends

    def _answers(self, call: HostStream) -> Steps[None]:
        sealed = self._place.sealed
        while (message := (yield Take(call))) is not None:
            try:
                header, chunks = parse_chunks(message, first=self._evidence is None)
            except EnvelopeError:
                raise answer_open_failed() from None
            if self._evidence is None:
                self._evidence = yield from self._place.answered_by(sealed.begin_answer(header))
            opened: list[_Opened] = []
            try:
                yield from self._open_all(chunks, self._evidence, opened)
            finally:
                self._settle(opened)
        if not sealed.ended:
            raise answer_open_failed()

    def _open_all(
        self, chunks: Sequence[memoryview], evidence: VerifiedEvidence, opened: list[_Opened]
    ) -> Steps[None]:
        """Hand over what fails or is given piece by piece; all else is left in ``opened``."""
        sealed, released = self._place.sealed, self._place.released
        for chunk in chunks:
            unit = sealed.answer(chunk)
            if unit is None:
                continue
            trailer = unit.trailer
            if unit.last:
                self._settle(opened)
                self._check_end(trailer)
                continue
            several = self._answered(trailer.unit, final=trailer.final)
            try:
                answer = released.answer(several[0], unit, evidence)
                if sum(map(len, answer.messages)) < LARGE:
                    read = _read(answer, several)
                else:
                    read = yield Work(partial(_read, answer, several))
            except RequestError as error:
                for asked in several:
                    asked.answers.failed(error)
                self._left(several if trailer.final else [])
                continue
            for asked, inference in zip(several, read, strict=True):
                if isinstance(inference, CasemateError) or not asked.answers.piecewise:
                    opened.append((asked, inference, trailer.final))
                    continue
                self._settle(opened)  # for a piece there may be no room for long
                yield Give(asked.answers, inference, trailer.final)
                self._left([asked] if trailer.final else [])

    def _settle(self, opened: list[_Opened]) -> None:
        """Hand over what waits for nothing, that of one message at once."""
        for asked, inference, final in opened:
            if isinstance(inference, CasemateError):
                asked.answers.failed(inference)
            else:
                asked.answers.answered(inference, final=final)
        for taker in {asked.answers.taker for asked, _, _ in opened}:
            if taker is not None:
                taker.wake()
        self._left([asked for asked, _, final in opened if final])
        opened.clear()

    def _left(self, answered: Sequence[Asked]) -> None:
        if answered:
            with self._lock:
                self._open.difference_update(answered)
            self._room.release(len(answered))

    def _answered(self, unit: int, *, final: bool) -> list[Asked]:
        """Return the questions that ``unit`` answers; after the final answer there are none."""
        with self._lock:
            several = (self._sent.pop if final else self._sent.get)(unit, None)
        if several is None:
            raise self.failure or answer_open_failed()
        return several

    def _check_end(self, trailer: Trailer) -> None:
        self._place.released.check_status(trailer)
        if self._open or not self._ended or trailer.unit != self._numbered:
            raise answer_open_failed()


def _read(answer: Answer, several: Sequence[Asked]) -> Sequence[Inference | RequestError]:
    """Return the tensors of each message's answer, or why it has none; raises CasemateError."""
    return [answer.inference()] if len(several) == 1 else answer.inferences()
