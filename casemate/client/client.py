"""The client: verify first, then seal, then open (SPEC 3.8, 5, 6)."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from casemate import limits, tensors
from casemate.attestation import ChainCache, verify_evidence
from casemate.client.transport import HostConnection
from casemate.envelope.sealing import DataKeySession
from casemate.errors import Code, EnvelopeError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from casemate.attestation import LogEntry, Step, TrustPolicy, VerifiedEvidence
    from casemate.client.kms import DataKeySource
    from casemate.envelope.sealing import OpenedAnswer

_NONCE_BYTES = 32
_DEFAULT_TIMEOUT_S = 30.0
_RENEW_MARGIN = 10_000  # ms: a call sealed just before the end still arrives in time
# The host says that the session is gone: the next call must start from new evidence.
_SESSION_LOST = frozenset(
    {Code.STALE_SESSION, Code.EXPIRED, Code.UNKNOWN_KEY, Code.UNKNOWN_INSTANCE, Code.UNAVAILABLE}
)


@dataclass(frozen=True, slots=True)
class Inference:
    """An answer, opened and bound to its request, with the model that gave it."""

    outputs: Mapping[str, np.ndarray]
    model: str
    version: int
    digest: bytes
    evidence: VerifiedEvidence


@dataclass(frozen=True, slots=True)
class _Session:
    evidence: VerifiedEvidence
    keys: DataKeySession
    renew_at: float  # time.monotonic()


class Client:
    """A verified, sealed connection to one Casemate service; thread-safe.

    Nothing is sealed before the evidence has passed every step of SPEC 3.8 under ``policy``.
    """

    def __init__(
        self,
        target: str,
        policy: TrustPolicy,
        *,
        caller_key: Ed25519PrivateKey | None = None,
        data_keys: DataKeySource | None = None,
        tls_roots: bytes | None = None,
    ) -> None:
        """Prepare a client for the host at ``target`` (``host:port``); nothing is sent yet.

        Args:
            target: address of the untrusted host.
            policy: what this client accepts.
            caller_key: authenticates this client to models that list their callers.
            data_keys: where data keys come from; by default each is made here and sealed to the
                enclave's key (key mode hpke). A `KmsDataKeys` takes them from the data owner's KMS.
            tls_roots: PEM roots; turns TLS to the host on.
        """
        self._policy = policy
        self._caller_key = caller_key
        self._data_keys = data_keys
        self._chains = ChainCache()
        self._connection = HostConnection(target, tls_roots=tls_roots)
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
        fresh = self._policy.evidence == "fresh"
        nonce = secrets.token_bytes(_NONCE_BYTES) if fresh else None
        bundle = self._connection.get_evidence(nonce, timeout_s)
        return verify_evidence(
            bundle, self._policy, nonce=nonce, now=_now(), observe=observe, chains=self._chains
        )

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

        The model's digest is pinned to the one in the verified measurement log, so what runs is
        what the policy allowed. ``outputs`` names the wanted outputs, all by default. A call
        declared ``repeatable`` is sealed once more, to newly verified evidence, when the host says
        that the session is gone; otherwise it is never sent twice.

        Raises RequestError (the service refused), EvidenceError (the enclave was refused),
        EnvelopeError (the answer was refused).
        """
        if not inputs:
            raise RequestError(Code.INVALID_ARGUMENT, "no inputs")
        message = tensors.to_request(inputs, outputs)
        deadline = time.monotonic() + timeout_s
        try:
            return self._attempt(model, version, message, deadline)
        except RequestError as error:
            if not (repeatable and error.code in _SESSION_LOST):
                raise
        return self._attempt(model, version, message, deadline)

    def _attempt(
        self, model: str, version: int | None, message: bytes, deadline: float
    ) -> Inference:
        session = self._live_session(deadline)
        entry = _loaded(session.evidence, model, version)
        if entry is None:  # perhaps loaded since: look once more
            session = self._live_session(deadline, renew=session)
            entry = _loaded(session.evidence, model, version)
        if entry is None:
            wanted = model if version is None else f"{model}:{version}"
            raise RequestError(Code.UNKNOWN_MODEL, f"the verified enclave has not loaded {wanted}")
        call = session.keys.seal(
            model=model, version=entry.version, digest=entry.digest, message=message
        )
        try:
            header, ciphertext = self._connection.infer(
                call.header, call.ciphertext, _remaining(deadline)
            )
        except RequestError as error:
            if error.code in _SESSION_LOST:
                self._forget(session)
            raise
        answer = call.open(header, ciphertext)
        if answer.instance_digest != session.evidence.instance_digest:
            detail = "the answer comes from an instance whose evidence was not verified"
            raise EnvelopeError(Code.ANSWER_INSTANCE_UNKNOWN, detail)
        return self._released(session, answer, entry)

    def _released(self, session: _Session, answer: OpenedAnswer, entry: LogEntry) -> Inference:
        trailer = answer.trailer
        if trailer.status is not Code.OK or answer.message is None:
            if trailer.status in (Code.UNKNOWN_MODEL, Code.DIGEST_MISMATCH):
                self._forget(session)  # models changed: the next call reads the log anew
            raise RequestError(trailer.status, trailer.detail)
        if trailer.digest != entry.digest:
            raise RequestError(Code.DIGEST_MISMATCH, "another model answered than was pinned")
        return Inference(
            outputs=tensors.from_response(answer.message),
            model=entry.name,
            version=entry.version,
            digest=entry.digest,
            evidence=session.evidence,
        )

    def _live_session(self, deadline: float, renew: _Session | None = None) -> _Session:
        with self._lock:
            session = self._session
            if session is None or session is renew or time.monotonic() >= session.renew_at:
                session = self._session = self._new_session(_remaining(deadline))
            return session

    def _new_session(self, timeout_s: float) -> _Session:
        evidence = self.verify(timeout_s=timeout_s)
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
            keys = DataKeySession.kms(
                key_arn=data_key.key_arn,
                ciphertext_blob=data_key.ciphertext_blob,
                data_key=data_key.key,
                instance_id=evidence.instance.instance_id,
                audience=self._policy.audience,
                not_before=not_before,
                not_after=not_after,
                caller=self._caller_key,
            )
        remaining = not_after - _now() - min(_RENEW_MARGIN, lifetime // 4)
        return _Session(evidence, keys, time.monotonic() + remaining / 1000)

    def _forget(self, session: _Session) -> None:
        with self._lock:
            if self._session is session:
                self._session = None

    def close(self) -> None:
        """Close the connection and drop the session's keys."""
        self._connection.close()
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


def _loaded(evidence: VerifiedEvidence, model: str, version: int | None) -> LogEntry | None:
    """Return the log's latest state of ``model``: the highest version that is still loaded."""
    live: dict[int, LogEntry] = {}
    for entry in evidence.log:
        if entry.name != model:
            continue
        if entry.op == "load":
            live[entry.version] = entry
        else:
            live.pop(entry.version, None)
    chosen = version if version is not None else max(live, default=0)
    return live.get(chosen)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise RequestError(Code.DEADLINE_EXCEEDED, "the client's own deadline has passed")
    return remaining
