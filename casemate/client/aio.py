"""The client for event loops: `Client`'s decisions over grpc.aio."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from casemate.client.aio_streaming import AsyncStream
from casemate.client.aio_together import Together
from casemate.client.client import DEFAULT_TIMEOUT_S
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
from casemate.client.steps import LARGE, AsyncDriver
from casemate.client.stream_core import DEFAULT_TIMEOUT_S as STREAM_TIMEOUT_S
from casemate.client.stream_core import IN_FLIGHT, begin_stream
from casemate.client.targets import Targets
from casemate.client.transport import AsyncHostConnection
from casemate.errors import RequestError
from casemate.oip.metadata import ModelMetadata, parse_metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
    from types import TracebackType

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from casemate.attestation import Step, TrustPolicy, VerifiedEvidence
    from casemate.client.access import HostAccess
    from casemate.client.core import Answer, Question
    from casemate.client.kms import DataKeySource
    from casemate.wire import Buffer


class _Parts(NamedTuple):
    targets: Targets[AsyncHostConnection]
    core: ClientCore
    driver: AsyncDriver
    together: Together | None


class AsyncClient:
    """`Client` for asyncio: the same checks, arguments, results and errors.

    For any number of tasks of one event loop. What blocks or takes long (verification, KMS, sealing
    much data) runs on threads. A task that is cancelled cancels its call to the host.

        async with AsyncClient("inference.example:8443", TrustPolicy.load("trust.toml")) as client:
            result = await client.infer("wdbc", {"features": rows})
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
        together: bool = True,
    ) -> None:
        """Prepare a client as `Client`; it belongs to the loop that runs its first call.

        ``together``: small questions that tasks ask of one model in one turn of the loop may share
        a request, where the enclave says that it runs them together (SPEC 5.10). It costs much
        less; the host counts it as one call.
        """

        def prepare() -> _Parts:
            targets = Targets(target, lambda name: AsyncHostConnection(name, access))
            sessions = Sessions(
                targets,
                policy,
                caller_key=caller_key,
                data_keys=data_keys,
                any_replica=any_replica,
            )
            core, driver = ClientCore(sessions, retry or RetryPolicy()), AsyncDriver()
            return _Parts(targets, core, driver, Together(core, driver) if together else None)

        self._parts = OfThisProcess(prepare)

    async def verify(
        self,
        *,
        observe: Callable[[Step], None] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> VerifiedEvidence:
        """As `Client.verify`; ``observe`` is called on another thread than the loop's."""
        _, core, driver, _ = self._parts.get()
        return await driver.run(core.verify(observe, timeout_s))

    async def infer(
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
        """As `Client.infer`."""
        asked = model, version, inputs, outputs
        if _take_long(inputs):
            question = await asyncio.to_thread(tensor_question, *asked, receipt=receipt)
        else:
            question = tensor_question(*asked, receipt=receipt)
        gathering = self._parts.get().together
        if gathering is not None:
            return await gathering.ask(question, timeout_s, repeatable=repeatable)
        return (await self._ask(question, timeout_s, repeatable=repeatable)).inference()

    async def metadata(
        self, model: str, *, version: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> ModelMetadata:
        """As `Client.metadata`."""
        question = metadata_question(model, version)
        answer = await self._ask(question, timeout_s, repeatable=True)
        return parse_metadata(answer.message)

    async def ready(
        self, model: str, *, version: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> bool:
        """As `Client.ready`."""
        try:
            await self.metadata(model, version=version, timeout_s=timeout_s)
        except RequestError as error:
            if says_not_ready(error):
                return False
            raise
        return True

    async def infer_sealed(
        self,
        model: str,
        sealed_data: Buffer,
        *,
        version: int | None = None,
        repeatable: bool = False,
        receipt: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Inference:
        """As `Client.infer_sealed`."""
        question = sealed_question(model, version, sealed_data, receipt=receipt)
        return (await self._ask(question, timeout_s, repeatable=repeatable)).inference()

    @contextlib.asynccontextmanager
    async def stream(
        self,
        model: str,
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        receipts: bool = False,
        in_flight: int = IN_FLIGHT,
        timeout_s: float = STREAM_TIMEOUT_S,
    ) -> AsyncIterator[AsyncStream]:
        """Begin a stream of questions to ``model``, as `Client.stream`, for the block that it is.

            async with client.stream("wdbc") as stream:
                async for result in stream.map(batches):
                    ...

        Raises as ``infer``, when it is entered, used and left.
        """
        _, core, driver, _ = self._parts.get()
        place = await driver.run(
            begin_stream(core, model, version, receipts=receipts, timeout_s=timeout_s)
        )
        async with AsyncStream(place, driver, outputs=outputs, in_flight=in_flight) as stream:
            yield stream

    def _ask(
        self, question: Question, timeout_s: float, *, repeatable: bool
    ) -> Coroutine[Any, Any, Answer]:
        _, core, driver, _ = self._parts.get()
        return driver.run(core.ask(question, repeatable=repeatable, timeout_s=timeout_s))

    async def aclose(self) -> None:
        """Close the connections and drop the session's keys."""
        targets, core, *_ = self._parts.get()
        core.drop()
        for connection in targets.in_order():
            await connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def _take_long(inputs: Mapping[str, np.ndarray]) -> bool:
    """Tell whether encoding them would hold up the loop; how long text is shows only then."""
    size = 0
    for array in inputs.values():
        if isinstance(array, np.ndarray):  # encoding says what is none
            if array.dtype.kind == "O":
                return True
            size += array.nbytes
    return size >= LARGE
