"""The client: verify first, then seal, then open (SPEC 3.8, 5, 6)."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from casemate import limits, tensors
from casemate.attestation import ChainCache, verify_evidence
from casemate.client.models import loaded_models, split_version, with_bfloat16
from casemate.client.targets import Targets
from casemate.envelope.header import ANY_INSTANCE
from casemate.envelope.messages import INFER, METADATA
from casemate.envelope.sealing import DataKeySession
from casemate.errors import Code, EnvelopeError, RequestError
from casemate.oip.metadata import ModelMetadata, metadata_request, parse_metadata
from casemate.sealed_data import SealedData

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from casemate.attestation import LogEntry, Step, TrustPolicy, VerifiedEvidence
    from casemate.client.access import HostAccess
    from casemate.client.kms import DataKeySource
    from casemate.client.models import Loaded
    from casemate.client.transport import HostConnection
    from casemate.envelope.sealing import OpenedAnswer
    from casemate.wire import Buffer

_NONCE_BYTES = 32
_DEFAULT_TIMEOUT_S = 30.0
_RENEW_MARGIN = 10_000  # ms: a call sealed just before the end still arrives in time
_REPLICAS_MAX = 64  # whose evidence one session keeps
_REPLICA_TRIES = 3  # behind one address the next question may reach the right replica
_MODEL_TRIES = 3  # a model may be replaced while its replacement's evidence is being verified
# The host says that the session is gone: the next call must start from new evidence.
_SESSION_LOST = frozenset(
    {Code.STALE_SESSION, Code.EXPIRED, Code.UNKNOWN_KEY, Code.UNKNOWN_INSTANCE, Code.UNAVAILABLE}
)
# Another target may still answer.
_TARGET_LOST = frozenset({Code.HOST_UNREACHABLE, Code.UNAVAILABLE, Code.UNKNOWN_MODEL})


@dataclass(frozen=True, slots=True)
class Inference:
    """An answer, opened and bound to its request, with the model that gave it."""

    outputs: Mapping[str, np.ndarray] = field(repr=False)
    model: str
    version: int
    digest: bytes
    evidence: VerifiedEvidence


@dataclass(frozen=True, slots=True)
class _Message:
    """What is asked: tensors, or sealed data with its ``H(m)``."""

    content: Buffer = field(repr=False)
    sealed_data: bytes | None = None
    operation: str = INFER


@dataclass(frozen=True, slots=True)
class _Answer:
    message: memoryview = field(repr=False)
    entry: LogEntry
    evidence: VerifiedEvidence

    def inference(self) -> Inference:
        return Inference(
            outputs=with_bfloat16(tensors.from_response(self.message)),
            model=self.entry.name,
            version=self.entry.version,
            digest=self.entry.digest,
            evidence=self.evidence,
        )


class _ModelMovedError(RequestError):
    """Said inside the seal: no such model any more, and so nothing ran (SPEC 6.4)."""


@dataclass(slots=True)
class _Session:
    connection: HostConnection
    evidence: VerifiedEvidence
    keys: DataKeySession
    models: Loaded
    ends_at: int  # ms, by this machine's clock
    # The same moment by a clock that nobody sets; but it stands still while the machine sleeps.
    ends_at_monotonic: float
    lost: bool = False
    # By H(instance_config): other replicas that answered, verified since the session began.
    replicas: dict[bytes, VerifiedEvidence] = field(default_factory=dict)

    def live(self) -> bool:
        """Whether another request may be sealed in it."""
        ended = time.monotonic() >= self.ends_at_monotonic or _now() >= self.ends_at
        return not (self.lost or ended)


class Client:
    """A verified, sealed connection to one Casemate service; thread-safe.

    Nothing is sent before the evidence has passed every step of SPEC 3.8 under ``policy``, and no
    answer is released that comes from an enclave whose evidence has not.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        policy: TrustPolicy,
        *,
        caller_key: Ed25519PrivateKey | None = None,
        data_keys: DataKeySource | None = None,
        any_replica: bool = False,
        access: HostAccess | None = None,
    ) -> None:
        """Prepare a client for the host at ``target`` (``host:port``); nothing is sent yet.

        Args:
            target: address of the untrusted host; or several, of replicas: one is used until it
                fails, then the next.
            policy: what this client accepts.
            caller_key: authenticates this client to models that list their callers.
            data_keys: where data keys come from; by default each is made here and sealed to the
                enclave's key (key mode hpke). A `KmsDataKeys` takes them from the data owner's KMS.
            any_replica: let any enclave answer that the policy accepts, as behind a balancer; needs
                ``data_keys``. A request then runs at most once at each replica.
            access: TLS to the host, and who asks it: a client certificate, a bearer token.

        Raises RequestError(INVALID_ARGUMENT).
        """
        if any_replica and data_keys is None:
            detail = "a key sealed to one enclave opens at no other: any_replica needs data_keys"
            raise RequestError(Code.INVALID_ARGUMENT, detail)
        self._policy = policy
        self._caller_key = caller_key
        self._data_keys = data_keys
        self._any_replica = any_replica
        self._chains = ChainCache()
        self._targets = Targets(target, access)
        self._session: _Session | None = None
        self._lock = threading.Lock()

    def verify(
        self,
        *,
        observe: Callable[[Step], None] | None = None,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
    ) -> VerifiedEvidence:
        """Fetch evidence and verify it now; ``observe`` sees each step.

        Raises EvidenceError with the failed step's code, or RequestError.
        """
        return self._reach(timeout_s, observe)[1]

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        repeatable: bool = False,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
    ) -> Inference:
        """Run ``model`` on ``inputs`` inside the verified enclave.

        ``model`` is a name, or ``name:version``; without a version the latest answers. Its digest
        is pinned to the one in the verified measurement log, so what runs is what the policy
        allowed; when it makes room for another version meanwhile, the call is sealed anew to the
        evidence that says so. ``outputs`` names the wanted outputs, all by default. A call
        declared ``repeatable`` is sealed once more, to newly verified evidence, when the host says
        that the session is gone, and once for each further target; otherwise nothing that may have
        run is sent twice.

        Raises RequestError (the service refused), EvidenceError (the enclave was refused),
        EnvelopeError (the answer was refused).
        """
        if not inputs:
            raise RequestError(Code.INVALID_ARGUMENT, "no inputs")
        message = _Message(tensors.to_request(inputs, outputs))
        name, version = split_version(model, version)
        return self._repeat(name, version, message, timeout_s, repeatable=repeatable).inference()

    def metadata(
        self, model: str, *, version: int | None = None, timeout_s: float = _DEFAULT_TIMEOUT_S
    ) -> ModelMetadata:
        """Return what ``model`` takes and gives, as its publisher declared and signed it.

        Asked inside the seal, so the host does not learn of which model; raises as ``infer``.
        """
        name, version = split_version(model, version)
        message = _Message(metadata_request(name, version), operation=METADATA)
        answer = self._repeat(name, version, message, timeout_s, repeatable=True)
        return parse_metadata(answer.message)

    def ready(
        self, model: str, *, version: int | None = None, timeout_s: float = _DEFAULT_TIMEOUT_S
    ) -> bool:
        """Tell whether ``model`` would run for this caller now; raises as ``infer`` otherwise."""
        try:
            self.metadata(model, version=version, timeout_s=timeout_s)
        except RequestError as error:
            if error.code is Code.UNKNOWN_MODEL:
                return False
            raise
        return True

    def infer_sealed(
        self,
        model: str,
        sealed_data: Buffer,
        *,
        version: int | None = None,
        repeatable: bool = False,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
    ) -> Inference:
        """Run ``model`` on data that its owner sealed at rest, which this client cannot open.

        The owner must list this client's ``caller_key`` among the readers, and the model's digest
        (SPEC 8.7). Otherwise as ``infer``; raises ObjectError (OBJECT_MALFORMED) before anything is
        sent.
        """
        message = _Message(sealed_data, SealedData.parse(sealed_data).digest)
        name, version = split_version(model, version)
        return self._repeat(name, version, message, timeout_s, repeatable=repeatable).inference()

    def _repeat(
        self,
        model: str,
        version: int | None,
        message: _Message,
        timeout_s: float,
        *,
        repeatable: bool,
    ) -> _Answer:
        deadline = time.monotonic() + timeout_s
        targets = len(self._targets)
        again = _SESSION_LOST if targets == 1 else _SESSION_LOST | _TARGET_LOST
        for _ in range(targets if repeatable else 0):
            try:
                return self._attempt(model, version, message, deadline)
            except RequestError as error:
                if error.code not in again:
                    raise
        return self._attempt(model, version, message, deadline)

    def _attempt(
        self, model: str, version: int | None, message: _Message, deadline: float
    ) -> _Answer:
        for _ in range(_MODEL_TRIES - 1):
            with contextlib.suppress(_ModelMovedError):
                return self._try(model, version, message, deadline)
        return self._try(model, version, message, deadline)

    def _try(self, model: str, version: int | None, message: _Message, deadline: float) -> _Answer:
        session = self._live_session(deadline)
        try:
            return self._ask(session, model, version, message, deadline)
        except _ModelMovedError:
            raise  # the target is as good as before
        except RequestError as error:
            if error.code in _TARGET_LOST:
                self._targets.leave(session.connection)
            if error.code in _SESSION_LOST or error.code in _TARGET_LOST:
                session.lost = True
            raise

    def _ask(
        self,
        session: _Session,
        model: str,
        version: int | None,
        message: _Message,
        deadline: float,
    ) -> _Answer:
        entry = session.models.get((model, version))
        if entry is None:  # perhaps loaded since: look once more
            session = self._live_session(deadline, renew=session)
            entry = session.models.get((model, version))
        if entry is None:
            wanted = model if version is None else f"{model}:{version}"
            raise RequestError(Code.UNKNOWN_MODEL, f"the verified enclave has not loaded {wanted}")
        call = session.keys.seal(
            model=model,
            version=entry.version,
            digest=entry.digest,
            message=message.content,
            sealed_data=message.sealed_data,
            operation=message.operation,
        )
        answer = call.open(
            *session.connection.infer(call.header, call.ciphertext, _remaining(deadline))
        )
        evidence = self._answered_by(session, answer.instance_digest, deadline)
        return self._released(session, answer, entry, evidence)

    def _answered_by(
        self, session: _Session, instance_digest: bytes, deadline: float
    ) -> VerifiedEvidence:
        """Return verified evidence of the instance that answered, or refuse its answer."""
        if instance_digest == session.evidence.instance_digest:
            return session.evidence
        if not self._any_replica:
            detail = "the answer comes from an instance whose evidence was not verified"
            raise EnvelopeError(Code.ANSWER_INSTANCE_UNKNOWN, detail)
        known = session.replicas.get(instance_digest)
        if known is not None:
            return known
        for connection in self._targets.in_order() * _REPLICA_TRIES:
            try:
                evidence = self._fetch(connection, _remaining(deadline), instance=instance_digest)
            except RequestError:
                continue  # it serves another instance, or none
            if evidence.instance_digest == instance_digest:
                if len(session.replicas) >= _REPLICAS_MAX:
                    session.replicas.clear()
                session.replicas[instance_digest] = evidence
                return evidence
        detail = "the instance that answered shows no evidence"
        raise EnvelopeError(Code.ANSWER_INSTANCE_UNKNOWN, detail)

    def _released(
        self,
        session: _Session,
        answer: OpenedAnswer,
        entry: LogEntry,
        evidence: VerifiedEvidence,
    ) -> _Answer:
        trailer = answer.trailer
        if trailer.status is not Code.OK or answer.message is None:
            if trailer.status in (Code.UNKNOWN_MODEL, Code.DIGEST_MISMATCH):
                session.lost = True  # models changed: the next attempt reads the log anew
            if trailer.status is Code.UNKNOWN_MODEL:
                raise _ModelMovedError(trailer.status, trailer.detail)
            raise RequestError(trailer.status, trailer.detail)
        if trailer.digest != entry.digest:
            raise RequestError(Code.DIGEST_MISMATCH, "another model answered than was pinned")
        return _Answer(answer.message, entry, evidence)

    def _live_session(self, deadline: float, renew: _Session | None = None) -> _Session:
        if not self._lock.acquire(timeout=_remaining(deadline)):
            raise RequestError(Code.DEADLINE_EXCEEDED, "another call is still verifying")
        try:
            session = self._session
            if session is None or session is renew or not session.live():
                # SPEC 6.2: evidence that the host held led to a session that was refused.
                fresh = session is not None and session.lost
                session = self._session = self._new_session(_remaining(deadline), fresh=fresh)
            return session
        finally:
            self._lock.release()

    def _new_session(self, timeout_s: float, *, fresh: bool) -> _Session:
        connection, evidence = self._reach(timeout_s, fresh=fresh)
        not_before = evidence.document.timestamp
        lifetime = min(limits.SESSION_SPAN_MAX, self._policy.maximum_age_seconds * 1000)
        not_after = not_before + lifetime
        if self._data_keys is None:
            raw_config, _ = evidence.current_key
            keys = DataKeySession.hpke(
                evidence_key_config=raw_config,
                instance_id=evidence.instance.instance_id,
                instance_digest=evidence.instance_digest,
                audience=self._policy.audience,
                not_before=not_before,
                not_after=not_after,
                caller=self._caller_key,
            )
        else:
            data_key = self._data_keys.generate(self._policy)
            own = evidence.instance.instance_id
            keys = DataKeySession.kms(
                key_arn=data_key.key_arn,
                ciphertext_blob=data_key.ciphertext_blob,
                data_key=data_key.key,
                instance_id=ANY_INSTANCE if self._any_replica else own,
                audience=self._policy.audience,
                not_before=not_before,
                not_after=not_after,
                caller=self._caller_key,
            )
        ends_at = not_after - min(_RENEW_MARGIN, lifetime // 4)
        monotonic = time.monotonic() + (ends_at - _now()) / 1000
        loaded = loaded_models(evidence.log)
        return _Session(connection, evidence, keys, loaded, ends_at, monotonic)

    def _reach(
        self,
        timeout_s: float,
        observe: Callable[[Step], None] | None = None,
        *,
        fresh: bool = False,
    ) -> tuple[HostConnection, VerifiedEvidence]:
        """Return the first target that shows evidence, verified; nothing secret is sent."""
        deadline = time.monotonic() + timeout_s
        *firsts, last = self._targets.in_order()
        for tried, connection in enumerate(firsts):
            share = _remaining(deadline) / (len(firsts) + 1 - tried)  # a silent one leaves the rest
            try:
                return connection, self._fetch(connection, share, observe, fresh=fresh)
            except RequestError:
                self._targets.leave(connection)
        return last, self._fetch(last, _remaining(deadline), observe, fresh=fresh)

    def _fetch(
        self,
        connection: HostConnection,
        timeout_s: float,
        observe: Callable[[Step], None] | None = None,
        *,
        instance: bytes | None = None,
        fresh: bool = False,
    ) -> VerifiedEvidence:
        fresh = fresh or self._policy.evidence == "fresh"
        nonce = secrets.token_bytes(_NONCE_BYTES) if fresh else None
        bundle = connection.get_evidence(nonce, timeout_s, instance)
        return verify_evidence(
            bundle, self._policy, nonce=nonce, now=_now(), observe=observe, chains=self._chains
        )

    def close(self) -> None:
        """Close the connections and drop the session's keys."""
        self._targets.close()
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _now() -> int:
    return time.time_ns() // 1_000_000


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise RequestError(Code.DEADLINE_EXCEEDED, "the client's own deadline has passed")
    return remaining
