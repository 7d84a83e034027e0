"""One sealed request from bytes to sealed answer, in the order of SPEC 6.4.

Until the replay window has accepted a request, a failure raises and is answered in the clear by
its code. From then on every outcome, this code's own faults included, is sealed to the caller.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Self

from casemate.envelope.header import KEY_MODE_HPKE, RequestHeader, parse_request_header
from casemate.envelope.messages import INFER, METADATA, SEALED_STATUSES, Preamble, Trailer
from casemate.envelope.opening import (
    Asker,
    OpenedRequest,
    check_commitment,
    encode_sealed,
    identify,
    open_request,
    parse_sealed,
    seal_response,
)
from casemate.envelope.stream_opening import OpenedStream
from casemate.errors import CasemateError, Code, RequestError
from casemate.kms_context import data_context
from casemate.oip.metadata import PLATFORM, ModelMetadata, encode_metadata
from casemate.tensors import request_lead, response_pieces
from casemate_enclave.admission import Admission, Session
from casemate_enclave.events import Counter, Step
from casemate_enclave.looping import last_piece
from casemate_enclave.questions import Questions
from casemate_enclave.runs import Run, finish
from casemate_enclave.shares import Owner
from casemate_enclave.workers.shared import lendable_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate import wire
    from casemate.envelope.replay import ReplayTable
    from casemate_enclave.clock import AttestedClock
    from casemate_enclave.context import RequestContext
    from casemate_enclave.events import Journal
    from casemate_enclave.identity import Identity
    from casemate_enclave.keys import KeyCache, KeyRing
    from casemate_enclave.lifetime import Lifetime
    from casemate_enclave.objects import ObjectOpener
    from casemate_enclave.receipts import ReceiptIssuer
    from casemate_enclave.registry import ModelRegistry, ServedModel
    from casemate_enclave.runs import Steps
    from casemate_enclave.unwraps import Unwraps


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the configuration says about requests (SPEC 3.2)."""

    audience: str
    request_bytes: int


@dataclass(slots=True, eq=False)
class _Outcome:
    """What is to be sealed, in the answer bucket ``floor``; no messages unless it is good."""

    trailer: Trailer
    floor: int  # of each message
    messages: Sequence[wire.Pieces] = field(default=(), repr=False)

    @classmethod
    def refused(cls, status: Code, detail: str, model: ServedModel | None) -> Self:
        if model is None:
            return cls(Trailer(status, detail), 0)
        trailer = model.trailer._replace(status=status, detail=detail)
        return cls(trailer, model.header.answer_bucket)


@dataclass(frozen=True, slots=True)
class OpenedHead:
    """A stream that was accepted; no preamble if it cannot be read."""

    stream: OpenedStream
    preamble: Preamble | None
    caller: bytes | None
    owner: Owner


class RequestService:
    """Answers sealed requests; thread-safe."""

    def __init__(
        self,
        bounds: Bounds,
        *,
        identity: Identity,
        clock: AttestedClock,
        keys: KeyRing,
        cache: KeyCache,
        replay: ReplayTable,
        unwraps: Unwraps,
        models: ModelRegistry,
        objects: ObjectOpener,
        journal: Journal,
        receipts: ReceiptIssuer,
        lifetime: Lifetime,
    ) -> None:
        self._bounds = bounds
        self._identity = identity
        self._clock = clock
        self._keys = keys
        self._cache = cache
        self._replay = replay
        self._unwraps = unwraps
        self._models = models
        self._objects = objects
        self._journal = journal
        self._receipts = receipts
        self._admission = Admission(
            bounds.audience,
            bounds.request_bytes,
            identity=identity,
            keys=keys,
            unwraps=unwraps,
            replay=replay,
            lifetime=lifetime,
        )

    def answer(
        self, payload: memoryview, deadline: float, context: RequestContext | None = None
    ) -> tuple[wire.Buffer, ...]:
        """Return a ``SealedResponse`` in pieces; ``deadline`` in seconds of ``time.monotonic``.

        A ``payload`` that can be written to is the service's from now on: it is opened in place.
        ``context``: what goes along with it; it holds the answer until that is sent.
        Raises CasemateError with a code of SPEC 11.1 for a request that was not accepted.
        """
        return finish(self.answering(payload, deadline, context))

    def answering(
        self, payload: memoryview, deadline: float, context: RequestContext | None = None
    ) -> Steps[tuple[wire.Buffer, ...]]:
        """Do as ``answer`` step by step."""
        self._journal.count(Counter.REQUESTS)
        try:
            raw_header, ciphertext = parse_sealed(payload)
            now = self._clock.now()
            session, sequence = self._admission.admit(raw_header, len(ciphertext), now)
            prk, known = self._cached(session, now)
            if prk is None:
                yield None
                prk = self._unwrap(raw_header, session, deadline)
                now = self._clock.now()  # that may have taken longer than the session had left
            begun = time.monotonic_ns()
            opened = open_request(raw_header, ciphertext, prk, _own_place(payload, ciphertext))
            asker = identify(raw_header, opened.preamble_bytes, known)
            owner = self._accept(raw_header, session, sequence, prk, asker, now)
        except CasemateError:
            self._journal.count(Counter.REQUESTS_REFUSED)
            raise
        if context is not None:
            context.owner = owner or session.key_commitment
        accepted = time.monotonic_ns()
        model, outcome = yield from self._outcome(opened, asker, deadline, context)
        ran = time.monotonic_ns()
        try:
            sealed = self._seal(opened, outcome)
        except Exception:  # noqa: BLE001 - as in _outcome; most likely it is too large for a frame
            failed = _Outcome.refused(Code.MODEL_FAILED, "the answer cannot be sealed", model)
            sealed = self._seal(opened, failed)
        self._journal.answered(accepted - begun, ran - accepted, time.monotonic_ns() - ran)
        return sealed

    def expire(self, now: int) -> None:
        """Forget the keys of sessions that are over, and these sessions; ``now`` as attested."""
        self._cache.expire(now)
        self._admission.expire(now)

    def open_stream(
        self,
        raw_header: bytes,
        chunk: memoryview,
        take: Callable[[int], None],
        deadline: float,
    ) -> OpenedHead:
        """Accept a stream by its first chunk, or raise as ``answer`` (SPEC 5.9)."""
        now = self._clock.now()
        session, sequence = self._admission.admit(raw_header, len(chunk), now)
        prk, known = self._cached(session, now)
        prk = prk or self._unwrap(raw_header, session, deadline)
        now = self._clock.now()  # as above
        stream = OpenedStream(raw_header, prk, take=take, lead=request_lead, memory=lendable_memory)
        asker = identify(raw_header, stream.open(chunk), known)
        listed = self._accept(raw_header, session, sequence, prk, asker, now)
        owner = Owner(listed or session.key_commitment, listed=listed is not None)
        return OpenedHead(stream, asker.preamble, asker.caller, owner)

    def _cached(self, session: Session, now: int) -> tuple[bytes | None, Asker | None]:
        """Return prk(data key), whose commitment matched, and who asked before under it."""
        prk = self._cache.get(session.wrapped, session.key_commitment, now)
        return (None, None) if prk is None else (prk, session.asker)

    def _unwrap(self, raw_header: bytes, session: Session, deadline: float) -> bytes:
        """Return prk(data key), whose commitment matched."""
        header = parse_request_header(raw_header)
        with self._journal.timed(Step.UNWRAP):
            if header.key_mode == KEY_MODE_HPKE:
                self._unwraps.local()
                data_key = self._keys.find(header.key_id).unwrap(header.encapsulation)
            else:
                # Whoever copies a wrapped key with another commitment fails alone.
                data_key = self._unwraps.once(
                    session.wrapped, lambda: self._release(header, deadline), deadline
                )
            return check_commitment(header, data_key)

    def _release(self, header: RequestHeader, deadline: float) -> bytes:
        context = data_context(self._bounds.audience)
        return self._unwraps.release(header.key_arn, header.ciphertext_blob, context, deadline)

    def _accept(  # noqa: PLR0917 - what was found out of a request so far
        self,
        raw_header: bytes,
        session: Session,
        sequence: int,
        prk: bytes,
        asker: Asker,
        now: int,
    ) -> bytes | None:
        """Let an authenticated request run, once, and remember its session (SPEC 6.4, 6.6).

        Returns its caller if a loaded model lists it.
        """
        owner, commitment = self._owner(asker.caller), session.key_commitment
        self._replay.accept(
            commitment, session.not_before, session.not_after, sequence, now, owner=owner
        )
        if asker is not session.asker:
            self._cache.put(session.wrapped, commitment, prk, session.not_after)
            self._admission.remember(raw_header, session, asker)
        return owner

    def _owner(self, caller: bytes | None) -> bytes | None:
        """Return a caller that a loaded model lists; all others share a pool (SPEC 6.8)."""
        return caller if caller is not None and self._models.lists(caller) else None

    def _outcome(
        self,
        opened: OpenedRequest,
        asker: Asker,
        deadline: float,
        context: RequestContext | None,
    ) -> Steps[tuple[ServedModel | None, _Outcome]]:
        """Run the request; never raises. Returns the model that was asked, if there is one."""
        model, preamble, caller = None, asker.preamble, asker.caller
        try:
            if preamble is None:
                raise RequestError(Code.INVALID_REQUEST, "the preamble cannot be read")  # noqa: TRY301
            model = self._models.find(preamble.model, preamble.version)
            check_asker(model, preamble, caller)
            prepare = partial(opened.prepare, self._identity.instance_digest)
            message: wire.Pieces
            if len(opened.messages) > 1:
                _check_several(model, preamble, len(opened.messages))
                _check_wanted(deadline, context)
                questions = Questions(model, opened.messages, deadline, context)
                answers = yield from questions.run(prepare)
                return model, _Outcome(model.trailer, model.header.answer_bucket, answers)
            if preamble.operation == METADATA:
                message = [self._metadata(model)]
            elif preamble.sealed_data is None:
                message = yield from _run(model, opened.message, deadline, context, prepare)
            else:
                yield None
                name = preamble.sealed_data
                tensors = self._objects.open(
                    opened.message, name, caller=caller, model=model.digest, deadline=deadline
                )
                message = yield from _run_sealed(model, tensors, deadline, context)
            trailer = model.trailer
            if preamble.receipt:
                receipt = self._receipts.issue(model, opened.th, opened.message, message)
                trailer = receipt.within(trailer)
            return model, _Outcome(trailer, model.header.answer_bucket, (message,))
        except CasemateError as refusal:
            code = refusal.code if refusal.code in SEALED_STATUSES else Code.MODEL_FAILED
            return model, _Outcome.refused(code, refusal.detail, model)
        except Exception:  # noqa: BLE001 - whatever it is, the host does not learn that it happened
            detail = "the request failed inside the enclave"
            return model, _Outcome.refused(Code.MODEL_FAILED, detail, model)

    def _metadata(self, model: ServedModel) -> bytes:
        if not model.ready:
            raise RequestError(Code.UNAVAILABLE, "the model is out of service")
        header = model.header
        versions = self._models.versions(header.name)
        return encode_metadata(
            ModelMetadata(header.name, versions, PLATFORM, header.inputs, header.outputs)
        )

    def _seal(self, opened: OpenedRequest, outcome: _Outcome) -> tuple[wire.Buffer, ...]:
        header, ciphertext = seal_response(
            opened,
            instance_digest=self._identity.instance_digest,
            messages=outcome.messages,
            trailer=outcome.trailer,
            floor=outcome.floor * len(opened.messages),
        )
        return encode_sealed(header, ciphertext)


def _own_place(payload: memoryview, ciphertext: memoryview) -> memoryview | None:
    """Return where in ``payload``, at its end, ``ciphertext`` lies, if that can be written to."""
    return None if payload.readonly else payload[len(payload) - len(ciphertext) :]


def check_asker(model: ServedModel, preamble: Preamble, caller: bytes | None) -> None:
    """Refuse a pin of another model, and callers it does not list; raises RequestError."""
    if preamble.digest is not None and not hmac.compare_digest(preamble.digest, model.digest):
        raise RequestError(Code.DIGEST_MISMATCH, "the model is not the one that the request pins")
    if not model.admits(caller):
        raise RequestError(Code.CALLER_REFUSED, "the model's publisher does not list this caller")


def _check_several(model: ServedModel, preamble: Preamble, count: int) -> None:
    """Refuse several questions where one request may not hold so many (SPEC 5.10)."""
    if preamble.operation != INFER or preamble.sealed_data is not None or preamble.receipt:
        raise RequestError(Code.INVALID_REQUEST, "several questions, and not of tensors alone")
    most = model.trailer.questions or 1
    if count > most:
        detail = f"{count} questions in one request, the model takes {most}"
        raise RequestError(Code.INVALID_REQUEST, detail)


def _check_wanted(deadline: float, context: RequestContext | None) -> None:
    if time.monotonic() >= deadline or (context is not None and context.cancelled):
        detail = "the deadline passed before the model ran, or nobody waited any more"
        raise RequestError(Code.DEADLINE_EXCEEDED, detail)


def _run(
    model: ServedModel,
    message: memoryview,
    deadline: float,
    context: RequestContext | None,
    meanwhile: Callable[[], None] | None = None,
) -> Steps[wire.Pieces]:
    header = model.header
    _check_wanted(deadline, context)
    request = model.requests.read(message)
    if request.timeout_us is not None:
        deadline = min(deadline, time.monotonic() + request.timeout_us / 1_000_000)
    if header.loop is None:
        outputs = yield Run(
            model.loaded, request.inputs, request.outputs, deadline, context, meanwhile
        )
    else:
        yield None
        outputs = last_piece(
            *(model.loaded, header.loop, request.inputs, request.outputs),
            deadline=deadline,
            cancellation=context,
        )
    answer = response_pieces(outputs, header.name, header.version, request.id)
    if context is not None:
        context.hold(answer)
    return answer


def _run_sealed(
    model: ServedModel, tensors: memoryview, deadline: float, context: RequestContext | None
) -> Steps[wire.Pieces]:
    try:
        return (yield from _run(model, tensors, deadline, context))
    except RequestError as error:
        if error.code not in {Code.INVALID_REQUEST, Code.INVALID_INPUT}:
            raise
        # Without its reason: it names tensors of data that the caller must not see.
        detail = "the sealed data does not fit the model"
        raise RequestError(Code.INVALID_INPUT, detail) from None
