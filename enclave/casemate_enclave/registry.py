"""The models that can be asked, by name and version (SPEC 3.5, 8, 8.8)."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from casemate.attestation.structures import LogEntry, callers_digest
from casemate.envelope.messages import Trailer
from casemate.errors import CasemateError, Code, ModelError, RequestError
from casemate.tensors import RequestReader
from casemate_enclave.independence import check_independent
from casemate_enclave.memory import Hold, MemoryBudget, cost_of_loading, cost_of_serving
from casemate_enclave.questions import most_questions
from casemate_enclave.scheduling import Bounds, ScheduledModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import TracebackType

    from casemate import cbor
    from casemate.attestation.structures import ServiceLimits
    from casemate.sealed_model import ModelHeader
    from casemate_enclave.clock import AttestedClock
    from casemate_enclave.identity import MeasurementLog
    from casemate_enclave.runtime import LastingModel, ModelRuntime
    from casemate_kms.models import OpenedModel


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model with the sealed header that it was loaded by."""

    header: ModelHeader
    digest: bytes
    loaded: ScheduledModel
    process: LastingModel
    requests: RequestReader = field(repr=False)
    trailer: Trailer  # of its good answers

    @classmethod
    def of(
        cls, header: ModelHeader, digest: bytes, loaded: ScheduledModel, process: LastingModel
    ) -> Self:
        """Return the model with what its requests and answers have in common."""
        requests = RequestReader(header.inputs, header.outputs)
        named = header.name, header.version, digest
        trailer = Trailer(Code.OK, "", *named, questions=most_questions(header))
        return cls(header, digest, loaded, process, requests, trailer)

    @property
    def ready(self) -> bool:
        """False while the model is out of service (SPEC 8.10)."""
        return self.process.ready

    def admits(self, caller: bytes | None) -> bool:
        """Whether the publisher lets ``caller`` ask; None is an anonymous one (SPEC 7)."""
        callers = self.header.callers
        return callers == "any" or (caller is not None and caller in callers)


class ModelRegistry:
    """Loaded models; thread-safe. Every change is in the measurement log before it shows.

    Whoever found a model runs it to the end, also when it is unloaded or replaced meanwhile.
    """

    def __init__(
        self,
        runtime: ModelRuntime,
        log: MeasurementLog,
        clock: AttestedClock,
        bounds: ServiceLimits,
        *,
        queued: Callable[[], AbstractContextManager[None]],
        waited: Callable[[int], None],
    ) -> None:
        """``queued`` times a request's waiting for its turn; both as ``ScheduledModel``."""
        self._runtime = runtime
        self._log = log
        self._clock = clock
        self._bounds = bounds
        self._queued = queued
        self._waited = waited
        self._memory = MemoryBudget(bounds.memory_bytes)
        self._lock = threading.Lock()
        self._models: dict[str, dict[int, ServedModel]] = {}
        # What is looked up for each request, made anew with every change.
        self._found: dict[tuple[str, int | None], ServedModel] = {}
        self._listed: frozenset[bytes] = frozenset()

    def find(self, name: str, version: int | None) -> ServedModel:
        """Return that version, or the highest; raises RequestError(UNKNOWN_MODEL)."""
        model = self._found.get((name, version))
        if model is None:
            raise _unknown()
        return model

    def lists(self, caller: bytes) -> bool:
        """Whether a loaded model names ``caller`` among its callers (SPEC 6.8)."""
        return caller in self._listed

    def listing(self) -> bool:
        """Whether a loaded model names callers at all (SPEC 6.9)."""
        return bool(self._listed)

    def versions(self, name: str) -> tuple[int, ...]:
        """Every loaded version of ``name``, ascending."""
        with self._lock:
            return tuple(sorted(self._models.get(name, ())))

    def serves(self, model: ServedModel) -> bool:
        """Whether ``model`` has not been unloaded since it was found."""
        with self._lock:
            return self._models.get(model.header.name, {}).get(model.header.version) is model

    def loading(self, replaces: int | None = None) -> Loading:
        """Prepare to load one model, which may take the place of version ``replaces``.

        Raises CasemateError(OVERLOADED) without room, before any byte arrives.
        """
        with self._lock:
            if replaces is None:
                self._check_capacity()
        return Loading(self, Hold(self._memory), replaces)

    def remove(self, name: str, version: int) -> None:
        """Stop serving one version; runs under way end normally.

        Raises RequestError(UNKNOWN_MODEL).
        """
        with self._lock:
            model = self._loaded(name, version)
            self._log.append(self._entry("unload", model.header, model.digest))
            self._drop(model)

    def served(self) -> tuple[ServedModel, ...]:
        """Every model, as for frame type 8."""
        with self._lock:
            return tuple(model for versions in self._models.values() for model in versions.values())

    def statement(self) -> dict[str, cbor.Value]:
        """The answer to frame type 13: what is loaded and what it takes, nothing of its use."""
        models = [
            {
                "name": model.header.name,
                "version": model.header.version,
                "digest": model.digest,
                "publisher": model.header.publisher,
                "bytes": cost_of_serving(model.header.total_bytes),
                "serving": model.header.serving.as_map(),
            }
            for model in self.served()
        ]
        return {"models": models, "held": self._memory.held, "most": self._memory.most}

    def check(self, header: ModelHeader, replaces: int | None) -> None:
        """Refuse what could not be served; raises ModelError, RequestError, CasemateError."""
        with self._lock:
            self._check(header, replaces)

    def serve(self, opened: OpenedModel, replaces: int | None, hold: Hold) -> None:
        """Make a verified model runnable, log it, serve it, and unload the one it replaces."""
        header, digest = opened.header, opened.digest
        loaded = self._runtime.load(opened.contents, header)
        if header.serving.batch_rows is not None:
            check_independent(loaded, header)
        narrowed = Bounds.of(header.serving, self._bounds)
        scheduled = ScheduledModel(loaded, narrowed, self._queued, self._waited)
        with self._lock:
            former = self._check(header, replaces)
            entries = (
                [] if former is None else [self._entry("unload", former.header, former.digest)]
            )
            self._log.append(*entries, self._entry("load", header, digest))
            if former is not None:
                self._drop(former)
            served = ServedModel.of(header, digest, scheduled, loaded)
            self._models.setdefault(header.name, {})[header.version] = served
            self._show()
        hold.keep(cost_of_serving(header.total_bytes), loaded)

    def _check(self, header: ModelHeader, replaces: int | None) -> ServedModel | None:
        former = None if replaces is None else self._loaded(header.name, replaces)
        if former is None:
            self._check_capacity()
        if header.version != replaces and header.version in self._models.get(header.name, ()):
            raise ModelError(Code.MODEL_REJECTED, "this version is loaded: unload it first")
        return former

    def _show(self) -> None:
        """Let requests find what is loaded now."""
        found: dict[tuple[str, int | None], ServedModel] = {}
        for name, versions in self._models.items():
            found |= {(name, version): model for version, model in versions.items()}
            found[name, None] = versions[max(versions)]
        self._found = found
        lists = (m.header.callers for versions in self._models.values() for m in versions.values())
        self._listed = frozenset(key for keys in lists if keys != "any" for key in keys)

    def _check_capacity(self) -> None:
        most = self._bounds.models
        if sum(map(len, self._models.values())) >= most:
            raise CasemateError(Code.OVERLOADED, f"{most} models are loaded, the limit")

    def _loaded(self, name: str, version: int) -> ServedModel:
        model = self._models.get(name, {}).get(version)
        if model is None:
            raise _unknown()
        return model

    def _drop(self, model: ServedModel) -> None:
        versions = self._models[model.header.name]
        del versions[model.header.version]
        if not versions:
            del self._models[model.header.name]
        self._show()

    def _entry(self, op: str, header: ModelHeader, digest: bytes) -> LogEntry:
        callers = callers_digest(header.callers)
        time = self._clock.now()
        return LogEntry(op, header.name, header.version, digest, header.publisher, callers, time)


class Loading:
    """One load under way, with the memory that it holds; a context manager."""

    def __init__(self, registry: ModelRegistry, hold: Hold, replaces: int | None) -> None:
        self._registry = registry
        self._hold = hold
        self._replaces = replaces

    def admit(self, header: ModelHeader) -> None:
        """Judge a verified header before any key is asked for or memory taken.

        Raises ModelError(MODEL_REJECTED), RequestError(UNKNOWN_MODEL), CasemateError(OVERLOADED).
        """
        self._registry.check(header, self._replaces)
        self._hold.take(cost_of_loading(header.total_bytes))

    def serve(self, opened: OpenedModel) -> None:
        """Serve the opened model; raises as ``admit`` and ModelError(MODEL_REJECTED)."""
        self._registry.serve(opened, self._replaces, self._hold)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hold.end()


def _unknown() -> RequestError:
    return RequestError(Code.UNKNOWN_MODEL, "no such model or version is loaded")
