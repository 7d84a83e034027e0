"""The blocking client: verify first, then seal, then open (SPEC 3.8, 5, 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

from casemate.client.core import (
    ClientCore,
    Inference,
    metadata_question,
    sealed_question,
    tensor_question,
)
from casemate.client.process import OfThisProcess
from casemate.client.retry import RetryPolicy, says_not_ready
from casemate.client.sessions import Sessions
from casemate.client.steps import Driver
from casemate.client.stream_core import DEFAULT_TIMEOUT_S as STREAM_TIMEOUT_S
from casemate.client.stream_core import IN_FLIGHT, begin_stream
from casemate.client.streaming import Stream
from casemate.client.targets import Targets
from casemate.client.transport import HostConnection
from casemate.errors import RequestError
from casemate.oip.metadata import ModelMetadata, parse_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from casemate.attestation import Step, TrustPolicy, VerifiedEvidence
    from casemate.client.access import HostAccess
    from casemate.client.core import Answer, Question
    from casemate.client.kms import DataKeySource
    from casemate.wire import Buffer

__all__ = ["DEFAULT_TIMEOUT_S", "Client", "Inference"]

DEFAULT_TIMEOUT_S: Final = 30.0


class _Parts(NamedTuple):
    targets: Targets[HostConnection]
    core: ClientCore
    driver: Driver


class Client:
    """A verified, sealed connection to one Casemate service; thread-safe.

    Nothing is sent before the evidence has passed every step of SPEC 3.8 under ``policy``, and no
    answer is released that comes from an enclave whose evidence has not. Each process has a data
    key of its own: after a fork the child verifies and makes its own with its first call.

    Use it as a context manager, or call `close`:

        with Client("inference.example:8443", TrustPolicy.load("trust.toml")) as client:
            result = client.infer("wdbc", {"features": rows})
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
        retry: RetryPolicy | None = None,
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
            retry: how patient this client is with failures that may pass (SPEC 11.5).

        Raises RequestError(INVALID_ARGUMENT).
        """

        def prepare() -> _Parts:
            targets = Targets(target, lambda name: HostConnection(name, access))
            sessions = Sessions(
                targets,
                policy,
                caller_key=caller_key,
                data_keys=data_keys,
                any_replica=any_replica,
            )
            return _Parts(targets, ClientCore(sessions, retry or RetryPolicy()), Driver())

        self._parts = OfThisProcess(prepare)

    def verify(
        self,
        *,
        observe: Callable[[Step], None] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> VerifiedEvidence:
        """Fetch evidence and verify it now; ``observe`` sees each step.

        Raises EvidenceError with the failed step's code, or RequestError.
        """
        _, core, driver = self._parts.get()
        return driver.run(core.verify(observe, timeout_s))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        repeatable: bool = False,
        receipt: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Inference:
        """Run ``model`` on ``inputs`` inside the verified enclave.

        Its digest is pinned to the one in the verified measurement log, so what runs is what the
        policy allowed; when it makes room for another version meanwhile, the call is sealed anew to
        the evidence that says so.

        Failures that may pass are answered by sending the identical bytes again: an enclave runs
        them at most once. When the host says that the session is gone, only a call declared
        ``repeatable`` is sealed anew, to newly verified evidence, because the first one may have
        run (SPEC 11.5).

        Args:
            model: ``name`` or ``name:version``; without a version the latest answers.
            inputs: arrays by name.
            version: of the model, in place of ``name:version``.
            outputs: names of the outputs that are wanted; all by default.
            repeatable: whether the request may run twice.
            receipt: ask for a signed receipt of this answer (SPEC 14).
            timeout_s: seconds, for everything that this call does.

        Raises SealedStatusError (the enclave refused), RequestError (the host did, or nobody
        answered in time), EvidenceError (the enclave was refused), EnvelopeError (the answer was).
        """
        question = tensor_question(model, version, inputs, outputs, receipt=receipt)
        return (self._ask(question, timeout_s, repeatable=repeatable)).inference()

    def metadata(
        self, model: str, *, version: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> ModelMetadata:
        """Return what ``model`` takes and gives, as its publisher declared and signed it.

        Asked inside the seal, so the host does not learn of which model; raises as ``infer``.
        """
        question = metadata_question(model, version)
        answer = self._ask(question, timeout_s, repeatable=True)
        return parse_metadata(answer.message)

    def ready(
        self, model: str, *, version: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> bool:
        """Tell whether ``model`` would run for this caller now; raises as ``infer`` otherwise."""
        try:
            self.metadata(model, version=version, timeout_s=timeout_s)
        except RequestError as error:
            if says_not_ready(error):
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
        receipt: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Inference:
        """Run ``model`` on data that its owner sealed at rest, which this client cannot open.

        The owner must list this client's ``caller_key`` among the readers, and the model's digest
        (SPEC 8.7). Otherwise as ``infer``; raises ObjectError (OBJECT_MALFORMED) before anything is
        sent.
        """
        question = sealed_question(model, version, sealed_data, receipt=receipt)
        return (self._ask(question, timeout_s, repeatable=repeatable)).inference()

    def stream(
        self,
        model: str,
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        receipts: bool = False,
        in_flight: int = IN_FLIGHT,
        timeout_s: float = STREAM_TIMEOUT_S,
    ) -> Stream:
        """Begin a stream of questions to ``model``: for many of them, and for large ones.

            with client.stream("wdbc") as stream:
                for result in stream.map(batches):
                    ...

        The caller is verified and the model pinned once. A stream is never repeated by itself.

        Args:
            model: ``name`` or ``name:version``.
            version: of the model, in place of ``name:version``.
            outputs: names of the outputs that are wanted; all by default.
            receipts: ask for a signed receipt of each answer (SPEC 14).
            in_flight: how many questions may be unanswered, at most 64.
            timeout_s: for the whole stream; ten minutes at most.

        Raises as ``infer``, also while it is used.
        """
        _, core, driver = self._parts.get()
        place = driver.run(
            begin_stream(core, model, version, receipts=receipts, timeout_s=timeout_s)
        )
        return Stream(place, driver, outputs=outputs, in_flight=in_flight)

    def _ask(self, question: Question, timeout_s: float, *, repeatable: bool) -> Answer:
        _, core, driver = self._parts.get()
        return driver.run(core.ask(question, repeatable=repeatable, timeout_s=timeout_s))

    def close(self) -> None:
        """Close the connections and drop the session's keys."""
        targets, core, _ = self._parts.get()
        core.drop()
        for connection in targets.in_order():
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
