"""What is to be loaded: the configured files, changed by the administrator while the host runs.

One lock for both who change the enclave's models: the supervisor's rounds, which bring a restarted
enclave back, and administration. What administration changed lasts as long as the host's process;
the configuration file is its owner's.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate_host.admission import ShedError
from casemate_host.models import ModelSlot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from casemate_host.control import Control, LoadedModel


class ModelSet:
    """The slots of all files; thread-safe."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._lock = threading.Lock()
        self._slots = [ModelSlot(path) for path in paths]

    def retry(self) -> None:
        """Let the next round try every file, whatever failed before."""
        for slot in tuple(self._slots):
            slot.retry()

    def credentials_changed(self) -> None:
        """Let the next round try the files whose keys were not released."""
        for slot in tuple(self._slots):
            slot.credentials_changed()

    def round(
        self, control: Control, present: frozenset[LoadedModel], now: float
    ) -> list[LoadedModel]:
        """Give every file that is due its attempt; return what was loaded."""
        with self._lock:
            tried = [(slot, slot.round(control, present, now)) for slot in self._slots]
        return [slot.model for slot, fresh in tried if fresh and slot.model is not None]

    def names(self) -> set[str]:
        """Return the names of the models that the files hold, as far as they are known."""
        return {slot.model.name for slot in tuple(self._slots) if slot.model is not None}

    def files(self) -> list[tuple[Path, Code | None]]:
        """Return every file with the code of its last failure, None if it is loaded or due."""
        return [(slot.path, slot.failure) for slot in tuple(self._slots)]

    def load(self, control: Control, path: Path, replaces: int | None = None) -> LoadedModel:
        """Load ``path`` and keep it loaded; with ``replaces`` in place of that version.

        Raises CasemateError, ShedError if models are being changed already; OSError.
        """
        with self._changing():
            if any(slot.path == path for slot in self._slots) and replaces is None:
                raise CasemateError(Code.INVALID_ARGUMENT, "the file is kept loaded already")
            slot = ModelSlot(path)
            model = slot.load(control, replaces)
            if replaces is not None:
                self._forget(model.name, replaces)
            self._slots.append(slot)
            return model

    def unload(self, control: Control, name: str, version: int) -> None:
        """Unload a version and no longer keep its file loaded; raises as ``load``."""
        with self._changing():
            control.unload(name, version)
            self._forget(name, version)

    def _forget(self, name: str, version: int) -> None:
        self._slots = [
            slot
            for slot in self._slots
            if slot.model is None or (slot.model.name, slot.model.version) != (name, version)
        ]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=limits.ADMIN_WAIT_S):
            raise ShedError("another change of models is under way", limits.RETRY_MAX_S)
        try:
            yield
        finally:
            self._lock.release()
