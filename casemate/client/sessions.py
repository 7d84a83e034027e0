"""Verified sessions: evidence first, then a data key for it (SPEC 3.8, 5, 6.2)."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from casemate import limits
from casemate.attestation import ChainCache, EvidenceBundle, verify_evidence
from casemate.client.models import loaded_models
from casemate.client.steps import Ask, Work, remaining
from casemate.envelope.header import ANY_INSTANCE
from casemate.envelope.sealing import DataKeySession
from casemate.errors import Code, EnvelopeError, RequestError
from casemate.v1.confidential_inference_pb2 import GetEvidenceRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from casemate.attestation import Step, TrustPolicy, VerifiedEvidence
    from casemate.client.kms import DataKeySource
    from casemate.client.models import Loaded
    from casemate.client.steps import Connection, Steps
    from casemate.client.targets import Targets

_NONCE_BYTES: Final = 32
_RENEW_MARGIN: Final = 10_000  # ms: a call sealed just before the end still arrives in time
_REPLICAS_MAX: Final = 64  # whose evidence one session keeps
_REPLICA_TRIES: Final = 3  # behind one address the next question may reach the right replica


@dataclass(slots=True)
class Session:
    """A data key for one verified enclave, or for all replicas that the policy accepts."""

    connection: Connection
    evidence: VerifiedEvidence
    keys: DataKeySession
    models: Loaded
    ends_at: int  # ms, by this machine's clock
    # The same moment by a clock that nobody sets; but it stands still while the machine sleeps.
    ends_at_monotonic: float
    # By H(instance_config): that of `evidence`, and other replicas' that answered, verified since.
    verified: dict[bytes, VerifiedEvidence]
    lost: bool = False
    # How many questions a request for a model and version may hold, as answers say (SPEC 5.10).
    together: dict[tuple[str, int], int] = field(default_factory=dict)

    def live(self) -> bool:
        """Whether another request may be sealed in it."""
        ended = time.monotonic() >= self.ends_at_monotonic or _now() >= self.ends_at
        return not (self.lost or ended)


class Sessions:
    """Makes sessions, as courses of steps. Which one is in use, its caller keeps."""

    def __init__(
        self,
        targets: Targets[Any],
        policy: TrustPolicy,
        *,
        caller_key: Ed25519PrivateKey | None,
        data_keys: DataKeySource | None,
        any_replica: bool,
    ) -> None:
        self.targets = targets
        self.policy = policy
        self.data_keys = data_keys
        self.any_replica = any_replica
        if any_replica and data_keys is None:
            detail = "a key sealed to one enclave opens at no other: any_replica needs data_keys"
            raise RequestError(Code.INVALID_ARGUMENT, detail)
        self._caller_key = caller_key
        self._chains = ChainCache()

    def begin(self, deadline: float, *, fresh: bool) -> Steps[Session]:
        """Verify an enclave and make a data key for it; ``fresh``: evidence with a nonce."""
        connection, evidence = yield from self.reach(deadline, fresh=fresh)
        not_before = evidence.document.timestamp
        lifetime = min(limits.SESSION_SPAN_MAX, self.policy.maximum_age_seconds * 1000)
        not_after = not_before + lifetime
        keys: DataKeySession = yield Work(lambda: self._keys(evidence, not_before, not_after))
        ends_at = not_after - min(_RENEW_MARGIN, lifetime // 4)
        monotonic = time.monotonic() + (ends_at - _now()) / 1000
        models = loaded_models(evidence.log)
        verified = {evidence.instance_digest: evidence}
        return Session(connection, evidence, keys, models, ends_at, monotonic, verified)

    def _keys(self, evidence: VerifiedEvidence, not_before: int, not_after: int) -> DataKeySession:
        own = evidence.instance.instance_id
        if self.data_keys is None:
            raw_config, _ = evidence.current_key
            return DataKeySession.hpke(
                evidence_key_config=raw_config,
                instance_id=own,
                instance_digest=evidence.instance_digest,
                audience=self.policy.audience,
                not_before=not_before,
                not_after=not_after,
                caller=self._caller_key,
            )
        data_key = self.data_keys.generate(self.policy)
        return DataKeySession.kms(
            key_arn=data_key.key_arn,
            ciphertext_blob=data_key.ciphertext_blob,
            data_key=data_key.key,
            instance_id=ANY_INSTANCE if self.any_replica else own,
            audience=self.policy.audience,
            not_before=not_before,
            not_after=not_after,
            caller=self._caller_key,
        )

    def reach(
        self,
        deadline: float,
        observe: Callable[[Step], None] | None = None,
        *,
        fresh: bool = False,
    ) -> Steps[tuple[Connection, VerifiedEvidence]]:
        """Return the first target that shows evidence, verified; nothing secret is sent."""
        *firsts, last = self.targets.in_order()
        for tried, connection in enumerate(firsts):
            # A silent one leaves time for the rest.
            share = time.monotonic() + remaining(deadline) / (len(firsts) + 1 - tried)
            try:
                evidence = yield from self._fetch(connection, share, observe, fresh=fresh)
            except RequestError:
                self.targets.leave(connection)
            else:
                return connection, evidence
        evidence = yield from self._fetch(last, deadline, observe, fresh=fresh)
        return last, evidence

    def answered_by(
        self, session: Session, instance_digest: bytes, deadline: float
    ) -> Steps[VerifiedEvidence]:
        """Return verified evidence of the instance that answered, or refuse its answer."""
        known = session.verified.get(instance_digest)
        if known is not None:
            return known
        if not self.any_replica:
            detail = "the answer comes from an instance whose evidence was not verified"
            raise EnvelopeError(Code.ANSWER_INSTANCE_UNKNOWN, detail)
        for connection in self.targets.in_order() * _REPLICA_TRIES:
            try:
                evidence = yield from self._fetch(connection, deadline, instance=instance_digest)
            except RequestError:
                continue  # it serves another instance, or none
            if evidence.instance_digest == instance_digest:
                if len(session.verified) > _REPLICAS_MAX:
                    own = session.evidence
                    session.verified = {own.instance_digest: own}
                session.verified[instance_digest] = evidence
                return evidence
        detail = "the instance that answered shows no evidence"
        raise EnvelopeError(Code.ANSWER_INSTANCE_UNKNOWN, detail)

    def _fetch(
        self,
        connection: Connection,
        deadline: float,
        observe: Callable[[Step], None] | None = None,
        *,
        instance: bytes | None = None,
        fresh: bool = False,
    ) -> Steps[VerifiedEvidence]:
        fresh = fresh or self.policy.evidence == "fresh"
        nonce = secrets.token_bytes(_NONCE_BYTES) if fresh else None
        request = GetEvidenceRequest(nonce=nonce, instance_config_digest=instance)
        data: bytes = yield Ask(
            connection, "GetEvidence", request.SerializeToString(), remaining(deadline)
        )
        evidence: VerifiedEvidence = yield Work(
            lambda: verify_evidence(
                EvidenceBundle.parse(data),
                self.policy,
                nonce=nonce,
                now=_now(),
                observe=observe,
                chains=self._chains,
            )
        )
        return evidence


def _now() -> int:
    return time.time_ns() // 1_000_000
