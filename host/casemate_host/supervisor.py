"""Keeps one enclave configured, checked and loaded, and says whether the host serves (SPEC 9.6).

Each round looks at the enclave afresh and does what is missing, in this order: configuration,
evidence checked by the host's own policy, credentials, models, evidence again if one was loaded. A
restarted enclave is brought back by the same path as the first one, and credentials go to nothing
that has not proved what it is. An enclave that cannot make evidence for now is served with what it
made before, as long as the host's policy accepts its age.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.attestation.chain_cache import ChainCache
from casemate.attestation.evidence import EvidenceBundle
from casemate.attestation.policy import STAPLED, TrustPolicy
from casemate.attestation.verify import verify_evidence
from casemate.errors import CasemateError, Code, FrameError
from casemate_host.backoff import Backoff
from casemate_host.credentials import Credentials
from casemate_host.events import describe, log
from casemate_host.health import OVERALL, Health
from casemate_host.model_set import ModelSet
from casemate_host.standing import Board, HeldEvidence, Standing

if TYPE_CHECKING:
    from casemate_host.config import EnclaveConfig
    from casemate_host.control import Control, EnclaveHealth, LoadedModel

_TOLERATED: Final = frozenset({Code.OVERLOADED, Code.DEADLINE_EXCEEDED, Code.CLOCK_UNAVAILABLE})
# The enclave answers, and its security module may not.
_CANNOT_ATTEST: Final = _TOLERATED | {Code.UNAVAILABLE}
_STRIKES: Final = 3  # rounds in a row that may fail with these before the host stops serving
_BREATH_S: Final = 0.05  # between rounds, however often somebody nudges


class Supervisor:
    """One thread that runs rounds; ``board`` and ``health`` carry its result."""

    def __init__(
        self,
        config: EnclaveConfig,
        control: Control,
        board: Board,
        health: Health,
    ) -> None:
        """Reads the configuration and the policy; raises CasemateError if one cannot be used."""
        self._config = config
        self._control = control
        self._board = board
        self._health = health
        self._configuration = _read_configuration(config)
        # The host's check is operational: it bounds age and needs no nonce of its own.
        policy = TrustPolicy.load(config.trust_policy)
        self._policy = dataclasses.replace(policy, evidence=STAPLED)
        self._chains = ChainCache()
        self._maximum_age = policy.maximum_age_seconds * 1000
        self._refresh_s = min(config.evidence_s, policy.maximum_age_seconds / 2)
        self.models = ModelSet(config.models)
        self._changed = threading.Event()
        self._names: set[str] = set()
        self._ready: set[str] = set()
        self._answering: set[LoadedModel] = set()
        self._held: HeldEvidence | None = None
        self._too_old_at = 0  # milliseconds: when the held evidence is
        self._evidence_problem = ""
        self._instance = b""
        self._sent: Credentials | None = None
        self._credentials_problem = ""
        self._due = 0.0
        self._strikes = 0
        self._backoff = Backoff(limits.BACKOFF_FIRST_S, limits.BACKOFF_MAX_S)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Begin the rounds."""
        self._thread.start()

    def stop(self) -> None:
        """End them, interrupting an exchange under way."""
        self._stopping.set()
        self._wake.set()
        self._control.interrupt()
        self._thread.join()

    def models_changed(self) -> None:
        """Have the next round at once, with new evidence: the measurement log is another one."""
        self._changed.set()
        self._wake.set()

    def nudge(self) -> None:
        """Have the next round at once: somebody found a connection dead."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause = self._round()
            self._stopping.wait(_BREATH_S)
            self._wake.wait(pause)
            self._wake.clear()

    def _round(self) -> float:
        """Do what is missing; return the seconds until the next round."""
        try:
            self._bring_up()
        except CasemateError as error:
            return self._failed(error)
        except Exception as error:  # noqa: BLE001 - the thread must outlive whatever happens
            log.error("internal_error", **describe(error))
            return self._failed(CasemateError(Code.INTERNAL, "internal error"))
        self._strikes = 0
        self._backoff.reset()
        return limits.HEALTH_PERIOD_S

    def _bring_up(self) -> None:
        health = self._control.health()
        if health.state == "failed":
            raise FrameError(Code.UNAVAILABLE, "the enclave reports that it failed")
        if health.state == "unconfigured":
            self._configure(health)
        if self._held is None or time.monotonic() >= self._due or self._changed.is_set():
            self._changed.clear()
            self._renew_evidence()
        self._send_credentials()
        if health.state == "draining":
            self._drain()
            return
        if self._load_models(health):
            self._renew_evidence()
        self._serve()

    def _configure(self, health: EnclaveHealth) -> None:
        self._forget()
        pcr16 = self._control.configure(self._configuration)
        log.info("enclave_configured", form=health.form, pcr16=pcr16.hex())

    def _forget(self) -> None:
        """Drop what belonged to an instance that is gone."""
        self._held = None
        self._sent = None
        self.models.retry()

    def _renew_evidence(self) -> None:
        """Have new evidence, or the held one if none can be made and it is not too old."""
        try:
            self._check_evidence()
        except CasemateError as error:
            old = self._held is None or time.time_ns() // 1_000_000 > self._too_old_at
            if old or error.code not in _CANNOT_ATTEST:
                raise
            self._due = 0.0  # the next round tries again
            self._evidence(f"{error.code}: {error.detail}")
        else:
            self._evidence("")

    def _evidence(self, problem: str) -> None:
        if problem and problem != self._evidence_problem:
            log.warning("evidence_not_renewed", detail=problem)
        self._evidence_problem = problem

    def _check_evidence(self) -> None:
        """Fetch evidence and hold it if it passes the host's policy; raises EvidenceError."""
        data = self._control.evidence()
        now = time.time_ns() // 1_000_000
        bundle = EvidenceBundle.parse(data)
        verified = verify_evidence(bundle, self._policy, nonce=None, now=now, chains=self._chains)
        if verified.instance_digest != self._instance:
            self._forget()
            self._instance = verified.instance_digest
            instance, form = verified.instance.instance_id.hex(), verified.instance.form
            log.info("evidence_passed", release=verified.release, instance=instance, form=form)
        self._held = HeldEvidence(data, verified.instance_digest, now)
        self._too_old_at = verified.document.timestamp + self._maximum_age
        self._due = time.monotonic() + self._refresh_s

    def _send_credentials(self) -> None:
        """Send the file's credentials if this instance lacks them; a bad file is only logged."""
        if self._config.credentials is None or self._evidence_problem:
            return  # what cannot prove now what it is gets nothing new
        try:
            current = Credentials.load(self._config.credentials)
        except CasemateError as error:
            self._credentials(error.detail)
            return
        if not current.same_as(self._sent):
            self._control.credentials(current.reveal())
            self._sent = current
            self.models.credentials_changed()
            log.info("credentials_sent", expires=current.expires)
        left_s = (current.expires or 1 << 63) / 1000 - time.time()
        self._credentials("" if left_s > limits.CREDENTIALS_WARN_S else "near or past their end")

    def _credentials(self, problem: str) -> None:
        if problem and problem != self._credentials_problem:
            log.warning("credentials_problem", detail=problem)
        self._credentials_problem = problem

    def _load_models(self, health: EnclaveHealth) -> bool:
        """Give every model that is due its attempt; True if one was loaded."""
        loaded = self.models.round(self._control, health.models, time.monotonic())
        self._answering = {*health.ready, *loaded}
        self._ready = {model.name for model in self._answering}
        self._names |= self.models.names()
        return bool(loaded)

    def _serve(self) -> None:
        if not self._board.standing.serving:
            log.info("serving", models=sorted(self._ready & self._names))
        models = tuple(sorted(self._answering, key=lambda model: (model.name, model.version)))
        self._board.post(Standing(self._held, Code.OK, "", models))
        self._health.set(OVERALL, serving=True)
        for name in self._names:
            self._health.set(f"model/{name}", serving=name in self._ready)

    def _drain(self) -> None:
        """Answer the sessions that have begun, and say to all others that this host does not."""
        if not self._board.standing.draining:
            log.info("draining")
        standing = Standing(
            self._held, Code.UNAVAILABLE, "draining: no new sessions", draining=True
        )
        self._board.post(standing)
        self._say_not_serving()

    def _say_not_serving(self) -> None:
        for name in (OVERALL, *(f"model/{name}" for name in self._names)):
            self._health.set(name, serving=False)

    def _failed(self, error: CasemateError) -> float:
        """Stop serving, unless the failure may be a passing one; return the pause."""
        self._strikes += 1
        if self._stopping.is_set():
            return 0.0
        if error.code in _TOLERATED and self._strikes < _STRIKES and self._held is not None:
            return limits.BACKOFF_FIRST_S
        standing = self._board.standing
        if standing.serving or (standing.code, standing.detail) != (error.code, error.detail):
            log.warning("not_serving", code=error.code, detail=error.detail)
        self._held = None
        self._board.post(Standing(None, error.code, error.detail))
        self._say_not_serving()
        return self._backoff.next()


def _read_configuration(config: EnclaveConfig) -> bytes:
    try:
        with config.configuration.open("rb") as file:
            data = file.read(limits.CONFIGURATION_MAX + 1)
    except OSError as error:
        detail = f"enclave.configuration cannot be read: {error.strerror}"
        raise CasemateError(Code.INVALID_ARGUMENT, detail) from None
    if not 1 <= len(data) <= limits.CONFIGURATION_MAX:
        raise CasemateError(Code.INVALID_ARGUMENT, "enclave.configuration is empty or too large")
    return data
