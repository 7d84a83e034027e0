"""What a client decides: when to verify, what to seal, what to release, whether to ask again.

Courses of steps (`casemate.client.steps`), which `Client` and `AsyncClient` take alike.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from casemate import limits, tensors
from casemate.allocator import expect_large_messages
from casemate.client.models import split_version, with_bfloat16
from casemate.client.retry import SESSION_GONE, TARGET_GONE, Again, Attempts
from casemate.client.steps import LARGE, Alone, Ask, Pause, deadline_after, remaining, worked
from casemate.envelope import questions
from casemate.envelope.messages import INFER, METADATA
from casemate.envelope.sealed_message import parse_sealed
from casemate.errors import Code, RequestError, SealedStatusError
from casemate.oip.metadata import metadata_request
from casemate.receipts import Shown, StoredReceipt
from casemate.sealed_data import SealedData

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from casemate.attestation import LogEntry, Step, VerifiedEvidence
    from casemate.client.retry import RetryPolicy
    from casemate.client.sessions import Session, Sessions
    from casemate.client.steps import Steps
    from casemate.envelope.sealing import OpenedAnswer, SealedCall
    from casemate.wire import Buffer, Pieces

_MODELS_CHANGED: Final = frozenset({Code.UNKNOWN_MODEL, Code.DIGEST_MISMATCH, Code.UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class Inference:
    """An answer, opened and bound to its request, with the model that gave it.

    ``outputs`` are arrays by name; ``digest`` is the model's, 48 bytes; ``evidence`` is of the
    enclave that answered. ``receipt`` is there if it was asked for.
    """

    outputs: Mapping[str, np.ndarray] = field(repr=False)
    model: str
    version: int
    digest: bytes
    evidence: VerifiedEvidence
    receipt: StoredReceipt | None = None


class Answer(NamedTuple):
    """What `Inference` is made of, before its tensors are read."""

    messages: Sequence[memoryview]
    entry: LogEntry
    evidence: VerifiedEvidence
    receipt: StoredReceipt | None

    @property
    def message(self) -> memoryview:
        """The only message."""
        (message,) = self.messages
        return message

    def inference(self, place: int | None = None) -> Inference:
        """Read the tensors, or of several questions those of the one at ``place`` (SPEC 5.10).

        Raises SealedStatusError if that one was refused.
        """
        messages, entry, evidence, receipt = self
        message = messages[0] if place is None else questions.read(messages[place])
        outputs = with_bfloat16(tensors.from_response(message))
        return Inference(outputs, entry.name, entry.version, entry.digest, evidence, receipt)

    def inferences(self) -> list[Inference | RequestError]:
        """Read the tensors of several questions, or why one has none; raises EnvelopeError."""
        parts, entry, evidence, receipt = self
        with contextlib.suppress(RequestError):
            messages = questions.read_good(parts)
            read = tensors.from_responses(messages) if messages else None
            if read is not None:
                by = entry.name, entry.version, entry.digest, evidence, receipt
                return [Inference(with_bfloat16(outputs), *by) for outputs in read]
        return [self._inference(place) for place in range(len(parts))]

    def _inference(self, place: int) -> Inference | RequestError:
        try:
            return self.inference(place)
        except RequestError as error:
            return error


@dataclass(slots=True)
class Question:
    """What is asked of which model: tensors, or sealed data with its ``H(m)``."""

    model: str
    version: int | None
    content: Pieces = field(repr=False)
    sealed_data: bytes | None = None
    receipt: bool = False
    operation: str = INFER
    others: Sequence[Pieces] = field(default=(), repr=False)  # asked in the same request

    def size(self) -> int:
        """Return the bytes of its content."""
        return sum(map(len, self.content)) + sum([sum(map(len, other)) for other in self.others])


class _Asked(NamedTuple):
    """A sealed question, which may be sent as it is more than once."""

    session: Session
    entry: LogEntry
    call: SealedCall


def tensor_question(
    model: str,
    version: int | None,
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    *,
    receipt: bool,
) -> Question:
    """Ask about tensors; raises RequestError (INVALID_ARGUMENT) if there are none."""
    if not inputs:
        raise RequestError(Code.INVALID_ARGUMENT, "no inputs")
    model, version = split_version(model, version)
    content = tensors.request_pieces(inputs, outputs)
    if receipt:  # it vouches for what was asked, whatever becomes of the arrays meanwhile
        content = [b"".join(content)]
    return Question(model, version, content, receipt=receipt)


def sealed_question(
    model: str, version: int | None, sealed_data: Buffer, *, receipt: bool
) -> Question:
    """Ask about data sealed at rest; raises ObjectError (OBJECT_MALFORMED)."""
    name = SealedData.parse(sealed_data).digest
    model, version = split_version(model, version)
    return Question(model, version, [sealed_data], name, receipt=receipt)


def metadata_question(model: str, version: int | None) -> Question:
    """Ask what a model takes and gives (SPEC 5.6.1); raises RequestError (INVALID_ARGUMENT)."""
    model, version = split_version(model, version)
    return Question(model, version, [metadata_request(model, version)], operation=METADATA)


class ClientCore:
    """The state of one client and its courses; the driver sees to it that they do not collide."""

    def __init__(self, sessions: Sessions, retry: RetryPolicy) -> None:
        expect_large_messages()
        self._sessions = sessions
        self._retry = retry
        self._session: Session | None = None

    def verify(
        self, observe: Callable[[Step], None] | None, timeout_s: float
    ) -> Steps[VerifiedEvidence]:
        """Fetch evidence and verify it now; a host that is asked too often is given its time."""
        deadline = deadline_after(timeout_s)
        attempts = Attempts(
            self._retry, repeatable=True, bound=False, targets=len(self._sessions.targets)
        )
        while True:
            try:
                _, evidence = yield from self._sessions.reach(deadline, observe)
            except RequestError as error:
                if error.code is not Code.OVERLOADED:
                    raise
                _, pause = self._go_on(error, attempts, None, deadline)
            else:
                return evidence
            yield Pause(pause)

    def ask(
        self,
        question: Question,
        *,
        repeatable: bool,
        timeout_s: float,
        failed: RequestError | None = None,
    ) -> Steps[Answer]:
        """Ask until there is an answer, or a failure that asking again does not mend.

        ``failed``: how it failed already.
        """
        deadline = deadline_after(timeout_s)
        attempts: Attempts | None = None  # made for the first failure: nearly all calls have none
        asked: _Asked | None = None
        while True:
            try:
                if failed is not None:
                    raise failed
                if asked is None:
                    asked = self._sealed_at_once(question) or (
                        yield from self._seal(question, deadline)
                    )
                to, request = asked.session.connection, asked.call.request
                data: bytes = yield Ask(to, "Infer", request, remaining(deadline))
                return _answer_at_once(asked, question, data) or (
                    yield from self._answer(asked, question, data, deadline)
                )
            except RequestError as error:
                attempts = attempts or self._attempts(repeatable=repeatable)
                again, pause = self._go_on(error, attempts, asked, deadline)
            failed = None
            if again is Again.RESEALED:
                asked = None
            if pause:
                yield Pause(pause)

    def most_together(self, question: Question) -> int:
        """Return in how many, all like it, ``question`` may share a request (SPEC 5.10)."""
        session = self._session
        if session is None or question.receipt:
            return 1
        entry = session.models.get((question.model, question.version))
        if entry is None:
            return 1
        most = session.together.get((entry.name, entry.version), 1)
        return most and min(most, limits.QUESTIONS_REQUEST // max(1, question.size()))

    def _attempts(self, *, repeatable: bool) -> Attempts:
        sessions = self._sessions
        return Attempts(
            self._retry,
            repeatable=repeatable,
            bound=not sessions.any_replica,
            targets=len(sessions.targets),
        )

    def _go_on(
        self, error: RequestError, attempts: Attempts, asked: _Asked | None, deadline: float
    ) -> tuple[Again, float]:
        """Return how the call goes on; raises ``error`` if it does not, or not in time."""
        try:
            again, pause = attempts.after(error, sent=asked is not None)
            if time.monotonic() + pause >= deadline:
                raise error
        except RequestError:
            self._forsake(error, asked)
            raise
        if again is Again.RESEALED:
            self._forsake(error, asked)
        return again, pause

    def _forsake(self, error: RequestError, asked: _Asked | None) -> None:
        session = asked.session if asked is not None else self._session
        if session is not None:
            self.forsake(error, session)

    def forsake(self, error: RequestError, session: Session) -> None:
        """Have the next request sealed anew, and sent elsewhere, if the failure says so."""
        sealed = isinstance(error, SealedStatusError)
        if error.code in TARGET_GONE and (not sealed or error.code is Code.UNAVAILABLE):
            self._sessions.targets.leave(session.connection)
        lost = _MODELS_CHANGED if sealed else SESSION_GONE | TARGET_GONE
        if error.code in lost:
            session.lost = True

    def pinned(
        self, model: str, version: int | None, deadline: float
    ) -> Steps[tuple[Session, LogEntry]]:
        """Return a live session and what its verified log says of the model."""
        session = yield from self.live_session(deadline)
        entry = session.models.get((model, version))
        if entry is None:  # perhaps loaded since: look once more
            session = yield from self.live_session(deadline, renew=session)
            entry = session.models.get((model, version))
        if entry is None:
            wanted = model if version is None else f"{model}:{version}"
            raise RequestError(Code.UNKNOWN_MODEL, f"the verified enclave has not loaded {wanted}")
        return session, entry

    def answered_by(
        self, session: Session, instance_digest: bytes, deadline: float
    ) -> Steps[VerifiedEvidence]:
        """Return verified evidence of the instance that answered, or refuse its answer."""
        return (yield from self._sessions.answered_by(session, instance_digest, deadline))

    def _sealed_at_once(self, question: Question) -> _Asked | None:
        """Seal if there is nothing to wait for: a short message, for a model of a live session."""
        session = self._session
        if session is None or not session.live() or question.size() >= LARGE:
            return None
        entry = session.models.get((question.model, question.version))
        return None if entry is None else _sealed(question, session, entry)

    def _seal(self, question: Question, deadline: float) -> Steps[_Asked]:
        session, entry = yield from self.pinned(question.model, question.version, deadline)
        return (yield from worked(question.size(), partial(_sealed, question, session, entry)))

    def _answer(
        self, asked: _Asked, question: Question, data: bytes, deadline: float
    ) -> Steps[Answer]:
        call, session = asked.call, asked.session
        opened = yield from worked(len(data), lambda: call.open(*parse_sealed(data)))
        evidence = yield from self.answered_by(session, opened.instance_digest, deadline)
        return _released(asked, question, opened, evidence)

    def live_session(self, deadline: float, renew: Session | None = None) -> Steps[Session]:
        """Return the session in use, or a new one if there is none, it is over, or ``renew``."""
        session = self._session
        if session is not None and session is not renew and session.live():
            return session
        found: Session = yield Alone(lambda: self._renewed(deadline, renew), deadline)
        return found

    def _renewed(self, deadline: float, renew: Session | None) -> Steps[Session]:
        session = self._session  # perhaps another call has renewed it meanwhile
        if session is None or session is renew or not session.live():
            # SPEC 6.2: evidence that the host held led to a session that was refused.
            fresh = session is not None and session.lost
            session = self._session = yield from self._sessions.begin(deadline, fresh=fresh)
        return session

    def drop(self) -> None:
        """Forget the session and its keys."""
        self._session = None


def _sealed(question: Question, session: Session, entry: LogEntry) -> _Asked:
    call = session.keys.seal(
        model=question.model,
        version=entry.version,
        digest=entry.digest,
        message=question.content,
        sealed_data=question.sealed_data,
        receipt=question.receipt,
        operation=question.operation,
        others=question.others,
    )
    return _Asked(session, entry, call)


def _answer_at_once(asked: _Asked, question: Question, data: bytes) -> Answer | None:
    """Open if there is nothing to wait for: a short answer, of an instance that was verified."""
    if len(data) >= LARGE:
        return None
    opened = asked.call.open(*parse_sealed(data))
    evidence = asked.session.verified.get(opened.instance_digest)
    return None if evidence is None else _released(asked, question, opened, evidence)


def _released(
    asked: _Asked, question: Question, answer: OpenedAnswer, evidence: VerifiedEvidence
) -> Answer:
    trailer, entry, together = answer.trailer, asked.entry, asked.session.together
    model = entry.name, entry.version
    if trailer.status is not Code.OK:
        if trailer.status is Code.INVALID_REQUEST:
            together.pop(model, None)  # it may have been more than the model takes now
        raise SealedStatusError(trailer.status, trailer.detail)
    if trailer.digest != entry.digest:
        raise RequestError(Code.DIGEST_MISMATCH, "another model answered than was pinned")
    together[model] = together_next(answer.messages, trailer.questions)
    return Answer(answer.messages, entry, evidence, _receipt(asked, question, answer, evidence))


def together_next(messages: Sequence[memoryview], most: int | None) -> int:
    """Return how many questions may be asked together, as long as answers are as long as these.

    ``most``: what the enclave says.
    """
    length = sum(map(len, messages)) // len(messages)
    return max(1, min(most or 1, limits.QUESTIONS_ANSWERS // length))


def _receipt(
    asked: _Asked, question: Question, answer: OpenedAnswer, evidence: VerifiedEvidence
) -> StoredReceipt | None:
    """Return the receipt with all that it takes to judge it later."""
    trailer = answer.trailer
    if trailer.receipt is None or answer.message is None:
        return None
    return StoredReceipt(
        receipt=trailer.receipt,
        evidence=evidence.bundle.serialize(),
        header=asked.call.header,
        question=Shown(trailer.question_blinder or b"", (b"".join(question.content),)),
        answer=Shown(trailer.answer_blinder or b"", (bytes(answer.message),)),
    )
