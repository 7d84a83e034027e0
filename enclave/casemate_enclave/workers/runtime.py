"""Makes models runnable, each in a worker: the enclave's ``ModelRuntime``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate import cbor, limits
from casemate.errors import CasemateError, Code
from casemate_enclave.accelerators import NONE, needs_of
from casemate_enclave.events import Event
from casemate_enclave.memory import cost_of_loading
from casemate_enclave.watchdog import Watchdog
from casemate_enclave.workers.model import WorkedModel
from casemate_enclave.workers.process import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate.sealed_model import ModelContents, ModelHeader
    from casemate_enclave.events import Journal
    from casemate_enclave.runtime import LastingModel
    from casemate_enclave.workers.spawning import Spawner


class WorkerRuntime:
    """onnxruntime with the configured providers, a process for each model.

    The runs of one model together take at most ``run_bytes`` of memory for tensors; one beyond that
    fails and the others go on. A run uses ``threads`` threads.
    """

    def __init__(
        self,
        spawner: Spawner,
        providers: Sequence[str],
        journal: Journal,
        *,
        run_bytes: int,
        threads: int,
    ) -> None:
        """Raises CasemateError(MALFORMED) if this onnxruntime lacks one of ``providers``."""
        for provider in providers:
            if provider not in spawner.greeting.providers:
                detail = f"providers: this enclave's onnxruntime has no {provider}"
                raise CasemateError(Code.MALFORMED, detail)
        self._spawner = spawner
        self._journal = journal
        self._providers = list(providers)
        self._run_bytes = run_bytes
        self._threads = threads
        self._watchdog = Watchdog()

    def load(self, contents: ModelContents, header: ModelHeader) -> LastingModel:
        """Load the first entry as the model, the others as its external data.

        The contents stay, sealed against change, for as long as the model: a worker that takes
        another's place loads them again.
        """
        return WorkedModel(self._beginning(contents, header), self._journal)

    def _beginning(
        self, contents: ModelContents, header: ModelHeader
    ) -> Callable[[Callable[[Worker, int], None]], Worker]:
        files = list(contents.lengths.items())
        settings = cbor.encode(
            [header.encode(), files, self._providers, self._run_bytes, self._threads]
        )
        loading = cost_of_loading(header.total_bytes)
        needs = needs_of(self._providers)
        data_bytes = loading + self._run_bytes + limits.WORKER_DATA + needs.data_bytes

        def begin(ended: Callable[[Worker, int], None]) -> Worker:
            def noted(worker: Worker, status: int) -> None:
                self._journal.emit(Event.WORKER_ENDED, count=abs(status))
                ended(worker, status)

            worker = Worker(
                self._spawner,
                self._watchdog,
                data_bytes=data_bytes,
                needs=needs,
                answer_max=self._run_bytes,
                ended=noted,
            )
            try:
                share = worker.load(settings, contents.descriptor, limits.LOAD_TIMEOUT_S)
            except BaseException:
                worker.dismiss()
                raise
            if needs != NONE:
                self._journal.emit(Event.MODEL_PLACED, count=share)
            return worker

        return begin
