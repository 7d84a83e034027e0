"""The models that can be asked, by name and version (SPEC 3.5, 8)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.attestation.structures import LogEntry, callers_digest
from casemate.errors import CasemateError, Code, ModelError, RequestError

if TYPE_CHECKING:
    from casemate.sealed_model import ModelHeader
    from casemate_enclave.clock import AttestedClock
    from casemate_enclave.identity import MeasurementLog
    from casemate_enclave.runtime import LoadedModel, ModelRuntime
    from casemate_kms.models import OpenedModel


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model with the sealed header that it was loaded by."""

    header: ModelHeader
    digest: bytes
    loaded: LoadedModel

    def admits(self, caller: bytes | None) -> bool:
        """Whether the publisher lets ``caller`` ask; None is an anonymous one (SPEC 7)."""
        callers = self.header.callers
        return callers == "any" or (caller is not None and caller in callers)


class ModelRegistry:
    """Loaded models; thread-safe. Every change is in the measurement log before it shows."""

    def __init__(
        self, runtime: ModelRuntime, log: MeasurementLog, clock: AttestedClock, capacity: int
    ) -> None:
        self._runtime = runtime
        self._log = log
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._models: dict[tuple[str, int], ServedModel] = {}

    def find(self, name: str, version: int | None) -> ServedModel:
        """Return that version, or the highest; raises RequestError(UNKNOWN_MODEL)."""
        with self._lock:
            if version is None:
                version = max((known for other, known in self._models if other == name), default=0)
            model = self._models.get((name, version))
        if model is None:
            raise RequestError(Code.UNKNOWN_MODEL, "no such model or version is loaded")
        return model

    def versions(self, name: str) -> tuple[int, ...]:
        """Every loaded version of ``name``, ascending."""
        with self._lock:
            return tuple(sorted(version for other, version in self._models if other == name))

    def serves(self, model: ServedModel) -> bool:
        """Whether ``model`` has not been unloaded since it was found."""
        with self._lock:
            return self._models.get((model.header.name, model.header.version)) is model

    def check_room(self) -> None:
        """Refuse a load that could not end well, before its bytes arrive; raises OVERLOADED."""
        with self._lock:
            self._check_capacity()

    def add(self, opened: OpenedModel) -> None:
        """Make a verified model runnable, log it and serve it.

        Raises ModelError(MODEL_REJECTED), or CasemateError(OVERLOADED) without room.
        """
        header, digest = opened.header, opened.digest
        loaded = self._runtime.load(opened.files, header)
        key = (header.name, header.version)
        with self._lock:
            self._check_capacity()
            if key in self._models:
                raise ModelError(Code.MODEL_REJECTED, "this version is loaded: unload it first")
            self._log.append(self._entry("load", header, digest))
            self._models[key] = ServedModel(header, digest, loaded)

    def remove(self, name: str, version: int) -> None:
        """Stop serving one version; runs under way end normally.

        Raises RequestError(UNKNOWN_MODEL).
        """
        with self._lock:
            model = self._models.get((name, version))
            if model is None:
                raise RequestError(Code.UNKNOWN_MODEL, "no such model or version is loaded")
            self._log.append(self._entry("unload", model.header, model.digest))
            del self._models[name, version]

    def served(self) -> tuple[ServedModel, ...]:
        """Every model, as for frame type 8."""
        with self._lock:
            return tuple(self._models.values())

    def _check_capacity(self) -> None:
        if len(self._models) >= self._capacity:
            raise CasemateError(Code.OVERLOADED, f"{self._capacity} models are loaded, the limit")

    def _entry(self, op: str, header: ModelHeader, digest: bytes) -> LogEntry:
        callers = callers_digest(header.callers)
        time = self._clock.now()
        return LogEntry(op, header.name, header.version, digest, header.publisher, callers, time)
